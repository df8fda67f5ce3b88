"""Python imports this at its start where ``Launched`` puts it on the path: a rank then inflicts a fault on itself."""

import json
import os

if "RANK" in os.environ and "MOO_TEST_BREAK" in os.environ:
    from tests.faults import breaks

    name, *args = json.loads(os.environ["MOO_TEST_BREAK"])
    getattr(breaks, name)(*args)
