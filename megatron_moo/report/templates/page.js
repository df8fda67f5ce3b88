(function () {
  "use strict";
  var root = document.documentElement;
  document.getElementById("theme").addEventListener("click", function () {
    var dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  var tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);

  function element(name, text, className) {
    var made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }
  function write(value) {
    if (value === null || value === undefined) return "–";
    var size = Math.abs(value);
    var text = size >= 1e5 ? Math.round(value).toLocaleString("en") : String(value);
    return text.replace("-", "−");
  }
  function showTip(event, head, rows) {
    tip.replaceChildren(element("div", head));
    var table = element("table");
    rows.forEach(function (row) {
      var line = element("tr", undefined, row.one ? "one" : "");
      row.cells.forEach(function (cell) { line.append(element("td", cell)); });
      table.append(line);
    });
    if (rows.length) tip.append(table);
    tip.hidden = false;
    var box = tip.getBoundingClientRect(), gap = 16;
    var left = event.clientX + gap + box.width > innerWidth ? event.clientX - gap - box.width : event.clientX + gap;
    var top = Math.min(event.clientY + gap, innerHeight - box.height - 6);
    tip.style.left = Math.max(6, Math.min(left, innerWidth - box.width - 6)) + "px";
    tip.style.top = Math.max(6, top) + "px";
  }
  function hideTip() { tip.hidden = true; }

  var pinned = null;
  function single(name) {
    document.querySelectorAll(".one").forEach(function (node) { node.classList.remove("one"); });
    document.querySelectorAll(".on-one").forEach(function (node) { node.classList.remove("on-one"); });
    if (name === null) return;
    document.querySelectorAll("[data-n]").forEach(function (node) {
      if (node.dataset.n !== name) return;
      node.classList.add("one");
      var figure = node.closest(".fig");
      if (figure && !figure.querySelector("table.sortable, .heat")) figure.classList.add("on-one");
    });
  }
  document.querySelectorAll(".dl, .mini, .bar").forEach(function (label) {
    var name = label.dataset.n;
    label.addEventListener("pointerenter", function (event) { if (event.pointerType === "mouse") single(name); });
    label.addEventListener("pointerleave", function (event) { if (event.pointerType === "mouse") single(pinned); });
    label.addEventListener("click", function () {
      pinned = pinned === name ? null : name;
      single(pinned);
    });
  });

  function nearest(list, value) {
    var best = 0;
    list.forEach(function (one, i) { if (Math.abs(one - value) < Math.abs(list[best] - value)) best = i; });
    return best;
  }
  function axis(figure) {
    var ticks = figure.querySelector(".xs");
    return (ticks && ticks.dataset.axis || "step") + " ";
  }
  function lines(figure, area, data) {
    var rule = element("div", undefined, "rule");
    rule.hidden = true;
    area.append(rule);
    var first = data.d[0], span = data.d[1] - first;
    area.addEventListener("pointermove", function (event) {
      var box = area.getBoundingClientRect();
      var share = (event.clientX - box.left) / box.width, up = 1 - (event.clientY - box.top) / box.height;
      var i = nearest(data.x, first + share * span);
      rule.hidden = false;
      rule.style.left = 100 * (data.x[i] - first) / span + "%";
      var stacked = !data.s[0].y;
      var found = data.s.filter(function (s) { return s.v[i] !== null; });
      if (!stacked) {
        found.sort(function (a, b) { return Math.abs(a.y[i] - up) - Math.abs(b.y[i] - up); });
        var closest = found.length ? found[0].n : null;
        found = found.slice(0, 12).sort(function (a, b) { return b.v[i] - a.v[i]; });
        if (pinned === null && event.pointerType === "mouse" && data.s.length > 2) single(closest);
      }
      showTip(event, axis(figure) + write(Math.round(data.x[i] * 10) / 10), found.map(function (s) {
        var cells = [s.n, write(s.v[i])];
        if (s.lo) cells.push(write(s.lo[i]) + " … " + write(s.hi[i]));
        return { cells: cells, one: !stacked && data.s.length > 2 && s.n === closest };
      }));
    });
    area.addEventListener("pointerleave", function () {
      rule.hidden = true;
      hideTip();
      if (pinned === null) single(null);
    });
  }
  function heat(figure, area, data) {
    var mark = element("div", undefined, "cell"), current = 0;
    mark.hidden = true;
    area.append(mark);
    var slider = figure.querySelector(".slider input"), frames = figure.querySelectorAll(".fr");
    if (slider) slider.addEventListener("input", function () {
      current = Number(slider.value);
      frames.forEach(function (frame, i) { frame.classList.toggle("on", i === current); });
      figure.querySelector("output").textContent = data.frames[current].n;
    });
    area.addEventListener("pointermove", function (event) {
      var box = area.getBoundingClientRect(), values = data.frames[current].v;
      var count = values[0].length, height = values.length;
      var column = Math.max(0, Math.min(count - 1, Math.floor((event.clientX - box.left) / box.width * count)));
      var row = Math.max(0, Math.min(height - 1, Math.floor((event.clientY - box.top) / box.height * height)));
      mark.hidden = false;
      mark.style.left = 100 * column / count + "%";
      mark.style.top = 100 * row / height + "%";
      mark.style.width = 100 / count + "%";
      mark.style.height = 100 / height + "%";
      var other = data.cols.length ? data.cols[column] : axis(figure) + write(Math.round(data.x[column]));
      showTip(event, data.rows[row] + " · " + other, [{ cells: [data.unit, write(values[row][column])] }]);
    });
    area.addEventListener("pointerleave", function () { mark.hidden = true; hideTip(); });
  }
  function forest(figure, area, data) {
    area.addEventListener("pointermove", function (event) {
      var box = area.getBoundingClientRect(), rows = data.forest;
      var at = Math.floor((event.clientY - box.top) / box.height * rows.length);
      var row = rows[Math.max(0, Math.min(rows.length - 1, at))];
      showTip(event, row.n, row.s.map(function (point) { return { cells: point }; }));
    });
    area.addEventListener("pointerleave", hideTip);
  }
  document.querySelectorAll(".fig").forEach(function (figure) {
    var source = figure.querySelector('script[type="application/json"]'), area = figure.querySelector(".area");
    if (!source || !area) return;
    var data = JSON.parse(source.textContent);
    (data.forest ? forest : data.frames ? heat : lines)(figure, area, data);
  });

  document.querySelectorAll("table.sortable").forEach(function (table) {
    var body = table.tBodies[0], original = Array.from(body.rows);
    table.querySelectorAll("thead th").forEach(function (head, column) {
      head.tabIndex = 0;
      function sort() {
        var before = head.getAttribute("aria-sort"), after = before === "ascending" ? "descending" : before ? null : "ascending";
        table.querySelectorAll("thead th").forEach(function (other) { other.removeAttribute("aria-sort"); });
        if (after) head.setAttribute("aria-sort", after);
        function key(row) {
          var cell = row.cells[column];
          var words = cell.textContent, whole = /^\d+$/.test(words);
          if (cell.dataset.v === undefined) return whole ? Number(words) : words;
          return cell.dataset.v === "" ? Infinity : Number(cell.dataset.v);
        }
        var rows = original.slice();
        if (after) rows.sort(function (a, b) {
          var x = key(a), y = key(b), order = x < y ? -1 : x > y ? 1 : 0;
          return after === "ascending" ? order : -order;
        });
        body.append.apply(body, rows);
      }
      head.addEventListener("click", sort);
      head.addEventListener("keydown", function (event) { if (event.key === "Enter") sort(); });
    });
  });
  root.dataset.ready = "yes";
})();
