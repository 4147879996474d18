"""The look of the pages that tell figures, here and in the benchmarks: CSS, in a light and a dark form."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root { color-scheme: light dark; --page: #f6f6f3; --card: #fcfcfb; --ink: #14140f; --soft: #5c5b56; --line: #e3e2dc;
  --warn: #fdf0d5; --warn-line: #e2a93b; --run-0: #2a78d6; --run-1: #eb6834; --run-2: #1baf7a; --run-3: #eda100;
  --run-4: #4a3aa7; --run-5: #e87ba4; --run-6: #008300; --run-7: #e34948; }
@media (prefers-color-scheme: dark) { :root { --page: #111110; --card: #1a1a19; --ink: #f4f3ee; --soft: #b0aea5;
  --line: #33322f; --warn: #33270f; --warn-line: #a9781b; --run-0: #3987e5; --run-1: #d95926; --run-2: #199e70;
  --run-3: #c98500; --run-4: #9085e9; --run-5: #d55181; --run-6: #3f9a3f; --run-7: #e66767; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 18px; margin: 40px 0 12px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px; }
.key { display: flex; flex-wrap: wrap; gap: 6px 20px; margin-bottom: 12px; font-size: 14px; }
.warning { background: var(--warn); border-left: 4px solid var(--warn-line); border-radius: 4px; padding: 8px 12px;
  margin-top: 12px; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: right; padding: 6px 10px; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } th:first-child, td:first-child { text-align: left; color: var(--soft); }
td { font-variant-numeric: tabular-nums; } tr:last-child td { border-bottom: 0; }
"""
