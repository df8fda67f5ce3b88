"""What a whole campaign has to record: fault, case, and how often it passed at least."""

from __future__ import annotations

# Every method that training takes, by name and not from its table: one that is lost there is missed here.
_METHODS = (
    "token", "fixed", "random", "gradvac", "imtl_g", "aligned_mtl", "nash_mtl", "fairgrad", "dualproj", "upgrad",
    "config", "crmogm", "ema:cagrad",
)  # fmt: skip
_WITHOUT = "the update is the one without the bad language"

DEMANDED: tuple[tuple[int, str, int], ...] = (
    (1, "kill -9 of a random rank, then bit for bit the uninterrupted run", 3),
    (1, "four runs, kill -9 of a random rank, then the same", 20),
    (2, "kill -9 in a save: a shard written", 1),
    (2, "kill -9 in a save: before .metadata", 1),
    (2, "kill -9 in a save: before the checksums", 1),
    (2, "kill -9 in a save: before the tracker", 1),
    (2, "kill -9 in a save: tracker half written", 1),
    (2, "kill -9 in the first save", 1),
    (3, "a file-size limit on all ranks", 1),
    (3, "a file-size limit on one rank", 1),
    (3, "a full tmpfs", 1),
    (4, "SIGTERM to one rank: all saved, status 143, no process left", 1),
    (4, "SIGTERM, SIGUSR1 and SIGINT to the launcher: saved, no process left", 3),
    (4, "kill -9 of the launcher: the ranks saved, no process left", 1),
    (4, "a save longer than torchrun waits for warned of", 2),
    *(
        (5, f"10 steps after a resume at {layout}: same samples, losses within 1e-5", 1)
        for layout in ("dp 1", "dp 4", "tp 2", "pp 2")
    ),
    (5, "another L refused unless it is asked for", 1),
    (5, "another L refused where no plan was made", 1),
    *(
        (6, f"{method} through a checkpoint, bitwise, and at another PP", 1)
        for method in ("gradvac", "crmogm", "ema:cagrad", "famo", "coba")
    ),
    (6, "weights between two solves through a checkpoint, bitwise, and at another PP", 1),
    (7, "asynchronous checkpoints equal to synchronous ones, every tensor", 3),
    (7, "saves with --moo-keep-last 2, two whole checkpoints kept", 8),
    (7, "a deletion that fails: two whole checkpoints kept", 1),
    (8, "killed ranks whose peer was gone within 5 s, no process left", 3),
    (8, "a stopped rank named with step, language, bucket and collective", 1),
    *((9, f"ranks with another {name}", 1) for name in ("method", "option", "block", "seed", "buckets")),
    (9, "ranks with another K or another manifest", 2),
    *((10, f"{method}, nan: {_WITHOUT}", 1) for method in ("mean", "sum", "mgda", "cagrad", "pcgrad")),
    (10, f"cagrad, +inf: {_WITHOUT}", 1),
    (10, f"cagrad, -inf, tp 2, sp: {_WITHOUT}", 1),
    (10, f"mgda, two of four, nan: {_WITHOUT}", 1),
    *((10, f"{method}, {value}: {_WITHOUT}", 1) for method in _METHODS for value in ("nan", "+inf", "-inf")),
    *(
        (10, f"{method}, {value}: {_WITHOUT}", 1)
        for method in ("mean", "sum", "mgda", "pcgrad")
        for value in ("+inf", "-inf")
    ),
    *(
        (10, f"{method}, {value}: {_WITHOUT}", 1)
        for method in ("famo", "coba")
        for value in ("nan", "+inf", "-inf")
    ),
    *((10, f"{method}: the bad language is left out and comes back", 1) for method in ("famo", "coba")),
    (10, "all languages bad: parameters and Adam's moments bit-identical on all ranks", 1),
    (10, "a bad language logged with its step and left out", 3),
    (10, "ten bad steps in a row end the run", 1),
    (10, "ten bad steps in a row end a whole run", 1),
    (11, "a tenfold loss of one language flagged in its step", 1),
    *((11, f"a tenfold loss after {step} clean steps flagged in its step", 20) for step in (8, 30, 499)),
    (11, "clean steps of a real run without an alarm", 500),
    (11, "a tenfold loss in the first step after a resume flagged", 1),
    *(
        (11, f"a tenfold loss flagged in steps 4 to 300 of a loss that falls from {high} to {low}", 297)
        for high, low in (
            ("11", 1),
            ("3.2", 0.2),
            ("2.1", 0.1),
            ("11", 2),
            ("6", 1),
            ("5.5", 0.5),
            ("5.55", 0.05),
        )
    ),
    *(
        (11, f"clean steps of simulated losses, falling to {floor}, noise {noise}, without an alarm", 10_000)
        for floor, noise in (("2", "0.02"), ("1", "0.1"), ("0.5", "0.25"), ("0.001", "0.25"))
    ),
    (12, "random bit flips over all files, refused naming the file", 100),
    (12, "damaged checkpoints refused by training", 2),
    *(
        (13, f"a pickle in {kind} run by no command", 7)
        for kind in (".metadata", "common.pt", "shard", ".pt", ".npy")
    ),
    (13, "train refuses a checkpoint of another user without --moo-trust-load", 2),
)
