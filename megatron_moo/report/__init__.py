"""What a run looked like: reading its metrics, the live view, the summary table and the report page.

Nothing here imports torch or Megatron: a report can be read on a laptop.
"""

from __future__ import annotations
