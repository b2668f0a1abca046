"""Style sheet of the model card, for light and dark screens and for print.

It is inlined in the page, so the Content-Security-Policy allows it by :data:`STYLE_SOURCE`.
"""

import base64
import hashlib

STYLE = """:root {
  color-scheme: light dark;
  --ground: #f6f7f9; --card: #ffffff; --line: #e2e5ea; --text: #1a1f29; --quiet: #5c6675;
  --accent: #2f5fd0; --soft: #e9effc; --good: #1c7c4a; --good-soft: #e2f4ea; --warn: #8a5a00;
    --warn-soft: #fdf1d9;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #0f1216; --card: #171b21; --line: #2a313b; --text: #e6e9ee; --quiet: #98a3b3;
    --accent: #86a9ff; --soft: #1f2a44; --good: #6fd3a0; --good-soft: #16302a; --warn: #e7bd6b;
      --warn-soft: #35290f;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--text);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans",
    sans-serif;
}
main { max-width: 960px; margin: 0 auto; padding: 40px 20px 64px; }
header { margin-bottom: 28px; }
h1 {
  display: flex; flex-wrap: wrap; align-items: center; gap: 10px; margin: 4px 0 6px;
  font: 600 30px/1.2 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace;
    letter-spacing: -0.02em;
}
h2 { margin: 0 0 12px; font-size: 17px; }
h3 { margin: 22px 0 8px; font-size: 13px; color: var(--quiet); font-weight: 600; }
p { margin: 0 0 10px; }
p:last-child { margin-bottom: 0; }
code, .digest {
  font-family: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace;
    font-size: 0.88em; }
a { color: var(--accent); }
.eyebrow { margin: 0; color: var(--quiet); font-size: 12px; letter-spacing: 0.08em;
  text-transform: uppercase; }
.subtitle { font-size: 17px; margin-bottom: 4px; }
.digest { color: var(--quiet); overflow-wrap: anywhere; }
.chip {
  padding: 3px 10px; border-radius: 999px; background: var(--soft); color: var(--accent);
  font: 600 13px/1.4 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans",
    sans-serif; letter-spacing: 0;
}
.chip.champion { background: var(--good-soft); color: var(--good); }
.chip.archived { background: var(--warn-soft); color: var(--warn); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 22px 24px; margin-bottom: 16px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 12px;
  margin-top: 14px; }
.tiles > div { border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px;
  display: flex; flex-direction: column; }
.label { color: var(--quiet); font-size: 13px; }
.value { font-size: 22px; font-weight: 600; font-variant-numeric: tabular-nums; line-height: 1.35; }
.interval { font-size: 13px; font-variant-numeric: tabular-nums; }
.warning { padding: 10px 14px; border-radius: 8px; background: var(--warn-soft);
  color: var(--warn); }
.meaning { color: var(--quiet); font-size: 12.5px; line-height: 1.4; margin-top: 2px; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(400px, 100%), 1fr));
  gap: 16px; }
figure { margin: 0; }
figure img { display: block; width: 100%; height: auto; background: #ffffff;
  border: 1px solid var(--line); border-radius: 8px; }
.scroll { overflow-x: auto; margin-bottom: 14px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; color: var(--quiet); font-weight: 500; font-size: 13px;
  padding: 4px 16px 6px 0; }
td { padding: 7px 16px 7px 0; border-top: 1px solid var(--line); vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
.bar { display: inline-flex; align-items: center; gap: 10px; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.bar rect { fill: var(--accent); }
.bar svg { background: var(--soft); border-radius: 2px; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr));
  gap: 0 28px; margin: 0 0 12px; }
dl > div { display: flex; gap: 14px; justify-content: space-between; padding: 6px 0;
  border-bottom: 1px solid var(--line); }
dt { color: var(--quiet); flex: none; }
dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
dl > div:has(.digest) { grid-column: 1 / -1; }
ul { margin: 0; padding-left: 20px; }
li { margin-bottom: 6px; }
.empty, footer { color: var(--quiet); }
footer { font-size: 13px; padding: 8px 4px; }
@media (prefers-color-scheme: dark) { figure img { filter: brightness(0.92); } }
@media (max-width: 560px) { main { padding: 24px 12px 40px; } section { padding: 18px 16px; } h1 {
  font-size: 24px; } }
@media print { body { background: #ffffff; } section { break-inside: avoid; } }
"""

STYLE_SOURCE = f"'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'"
"""CSP source expression that allows exactly this style sheet."""
