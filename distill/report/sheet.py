"""The report's style sheet and its few lines of script; without the script the page lacks its read-out, no more."""

from __future__ import annotations

# Series colours keep 3:1 against their ground in either scheme and differ in lightness as well as in hue.
STYLE = """
:root { color-scheme: light dark;
  --ground: #faf9f6; --card: #ffffff; --ink: #1c2127; --soft: #5b646e; --faint: #e5e2db; --line: #cfcbc2;
  --s0: #1f66ad; --s1: #bf5a0e; --s2: #2b7f5c; --s4: #a3264f; --thaw: #7b5cc4; --good: #2b7f5c; --warn: #8a4b00;
  --spike: #c62828; --warn-ground: #fdf1dc;
  --student: #eaf2fa; }
@media (prefers-color-scheme: dark) { :root {
  --ground: #14171b; --card: #1b1f25; --ink: #e7e9ec; --soft: #9aa4af; --faint: #2b313a; --line: #3c444f;
  --s0: #74b3f0; --s1: #f0a15c; --s2: #6cc9a1; --s4: #f08cae; --thaw: #b49df0; --good: #6cc9a1; --warn: #f3c374;
  --spike: #ff7b72;
  --warn-ground: #322714;
  --student: #1d2a38; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "Liberation Sans",
  sans-serif; }
main, header, footer { max-width: 1180px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 44px; }
h1 { font-size: clamp(1.7rem, 4vw, 2.3rem); line-height: 1.15; margin: 0 0 6px; letter-spacing: -0.02em;
  overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 52px 0 4px; letter-spacing: -0.01em; }
h3 { font-size: 1rem; margin: 28px 0 4px; }
p { margin: 0 0 10px; max-width: 76ch; }
.lead, .soft, footer { color: var(--soft); }
.over { font-size: .78rem; letter-spacing: .09em; text-transform: uppercase; color: var(--soft); margin: 0 0 6px; }
a { color: var(--s0); }
nav { margin: 18px 0 0; display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: .92rem; }
code { font: .88em/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
  overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 14px; margin: 18px 0 22px; }
.tile { background: var(--card); border: 1px solid var(--faint); border-radius: 12px; padding: 16px 18px; }
.tile b { display: block; font-size: 1.9rem; line-height: 1.15; font-weight: 650; letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums; }
.tile span { display: block; color: var(--soft); font-size: .9rem; }
.tile .what { color: var(--ink); font-weight: 600; margin-bottom: 4px; }
.note { background: var(--warn-ground); color: var(--warn); border-radius: 10px; padding: 10px 14px; margin: 12px 0;
  max-width: none; }
.empty { border: 1px dashed var(--line); border-radius: 10px; padding: 12px 16px; color: var(--soft);
  max-width: none; }
.scroll { overflow-x: auto; margin: 14px 0; border: 1px solid var(--faint); border-radius: 12px;
  background: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: .93rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 12px 16px 2px; color: var(--soft); font-size: .9rem; }
caption span { display: inline-block; position: sticky; left: 16px; max-width: min(100%, calc(100vw - 66px)); }
th, td { padding: 9px 14px; text-align: right; border-top: 1px solid var(--faint); white-space: nowrap; }
thead th { border-top: 0; color: var(--soft); font-weight: 600; font-size: .84rem; vertical-align: bottom; }
th:first-child, td:first-child, .text { text-align: left; }
td.wrap { white-space: normal; overflow-wrap: anywhere; min-width: 180px; }
tbody th { font-weight: 600; }
tbody th small { display: block; font-weight: 400; color: var(--soft); }
tr.student th, tr.student td { background: var(--student); }
.bar { display: block; height: 4px; border-radius: 2px; background: var(--s0); opacity: .75; margin: 4px 0 0 auto; }
.ok { color: var(--good); } .bad { color: var(--warn); font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 14px;
  margin: 14px 0; }
figure { margin: 0; }
.chart { background: var(--card); border: 1px solid var(--faint); border-radius: 12px; padding: 14px 14px 8px;
  display: grid; grid-template-rows: 1fr auto auto; break-inside: avoid; }
.chart figcaption { font-size: .95rem; }
.chart figcaption p { color: var(--soft); font-size: .84rem; line-height: 1.4; margin: 2px 0 6px; }
.at { float: right; color: var(--soft); font-size: .82rem; font-variant-numeric: tabular-nums; }
.keys { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: .84rem; color: var(--soft); min-height: 1.5em; }
.key b { color: var(--ink); font-weight: 600; font-variant-numeric: tabular-nums; }
.key i { display: inline-block; width: 16px; height: 0; border-top: 3px solid; margin-right: 5px;
  vertical-align: .25em; }
svg { display: block; width: 100%; height: auto; touch-action: pan-y; }
.s0 { --hue: var(--s0); } .s1 { --hue: var(--s1); } .s2 { --hue: var(--s2); } .s3 { --hue: var(--thaw); } .s4 { --hue: var(--s4); }
.ref { --hue: var(--soft); }
.key i { border-color: var(--hue); } .key.s1 i { border-top-style: dashed; }
  .key.s2 i, .key.ref i { border-top-style: dotted; }
.line { fill: none; stroke: var(--hue); stroke-width: 1.9; stroke-linejoin: round; stroke-linecap: round; }
.line.s1 { stroke-dasharray: 6 3.5; } .line.s2 { stroke-dasharray: 1.5 3.5; }
.line.s3 { stroke-dasharray: 10 3 2 3; } .line.s4 { stroke-dasharray: 3 2; }
.line.ref { stroke-dasharray: 2 4; stroke-width: 1.3; }
.band { fill: var(--hue); opacity: .17; } .dot { fill: var(--hue); }
.grid { stroke: var(--faint); } .axis { stroke: var(--line); }
.tick { fill: var(--soft); font-size: 10.5px; font-variant-numeric: tabular-nums; }
line.thaw { stroke: var(--thaw); stroke-dasharray: 3 3; opacity: .6; } line.planned { opacity: .3; }
text.thaw { fill: var(--thaw); font-size: 9.5px; } text.planned { opacity: .65; }
line.spike { stroke: var(--spike); stroke-width: 1.2; } path.spike { fill: var(--spike); }
.legend.spiked::before { border-left-style: solid; border-left-color: var(--spike); }
.strips { background: var(--card); border: 1px solid var(--faint); border-radius: 12px; padding: 14px; margin: 14px 0; break-inside: avoid; }
.strips figcaption p { color: var(--soft); font-size: .84rem; line-height: 1.4; margin: 2px 0 6px; max-width: none; }
.shade, .scale i { fill: var(--s0); background: var(--s0); } .row { fill: var(--ink); font-size: 11px; }
.scale { display: flex; gap: 8px; align-items: center; font-size: .82rem; color: var(--soft); }
.scale span { display: flex; } .scale i { width: 22px; height: 11px; }
.cursor { stroke: var(--ink); opacity: .5; }
.legend::before { content: ""; display: inline-block; height: 1em; border-left: 2px dashed var(--thaw);
  margin-right: 8px;
  vertical-align: -.15em; }
.pairs { grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.gallery { display: grid; gap: 18px; margin: 14px 0; }
.trio { background: var(--card); border: 1px solid var(--faint); border-radius: 12px; padding: 14px;
  break-inside: avoid; }
.trio > figcaption { font-weight: 600; font-size: .92rem; margin-bottom: 8px; overflow-wrap: anywhere; }
.trio > div { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 250px), 1fr)); gap: 12px; }
.trio img { display: block; width: 100%; height: auto; border-radius: 7px; background: var(--faint); }
.trio figure figcaption { font-size: .84rem; color: var(--soft); margin-top: 4px;
  font-variant-numeric: tabular-nums; }
.trio figure figcaption b { color: var(--ink); }
details { margin: 14px 0; } summary { cursor: pointer; color: var(--s0); font-size: .93rem; }
footer { font-size: .86rem; padding-top: 40px; padding-bottom: 56px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; margin: 8px 0; }
dt { font-weight: 600; color: var(--ink); } dd { margin: 0; }
@media (max-width: 560px) { main, header, footer { padding-left: 16px; padding-right: 16px; }
  header { padding-top: 28px; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 10px; } .tile { padding: 12px; } .tile b { font-size: 1.45rem; }
  th, td { padding: 8px 10px; } .compare th:first-child { position: sticky; left: 0; background: var(--card);
  white-space: normal; }
  .compare tr.student th:first-child { background: var(--student); } dl { grid-template-columns: 1fr; }
  dd { margin-bottom: 8px; } }
@media print { :root { color-scheme: light; --ground: #fff; --card: #fff; --ink: #000; --soft: #444; --faint: #ddd;
  --line: #999;
  --s0: #1f66ad; --s1: #bf5a0e; --s2: #2b7f5c; --s4: #a3264f; --thaw: #7b5cc4; --good: #2b7f5c; --warn: #8a4b00;
  --spike: #c62828; --warn-ground: #fff;
  --student: #eef; } body { font-size: 10.5pt; } nav, .at { display: none; } h2 { break-after: avoid; }
  tr { break-inside: avoid; } .charts { grid-template-columns: 1fr 1fr; } .scroll { overflow: visible; }
  .trio > div { grid-template-columns: repeat(3, 1fr); } .note { border: 1px solid; } }
"""

SCRIPT = """
(() => {
  const charts = [...document.querySelectorAll('.chart')].map(figure => ({
    data: JSON.parse(figure.dataset.chart), svg: figure.querySelector('svg'), cursor: figure.querySelector('.cursor'),
    at: figure.querySelector('.at'), keys: [...figure.querySelectorAll('.key b')] }));
  for (const chart of charts) chart.last = chart.keys.map(key => key.textContent);
  const nearest = (series, x) => {
    let best = 0;
    series.x.forEach((value, i) => {
      if (series.step ? value <= x : Math.abs(value - x) < Math.abs(series.x[best] - x)) best = i;
    });
    return series.y[best];
  };
  const show = x => charts.forEach(chart => {
    const d = chart.data, place = d.left + d.span * x / d.length;
    chart.cursor.setAttribute('x1', place); chart.cursor.setAttribute('x2', place);
    chart.cursor.setAttribute('visibility', 'visible');
    chart.at.textContent = 'epoch ' + x.toFixed(d.length > 20 ? 1 : 2);
    chart.keys.forEach((key, i) => { if (d.series[i].x.length) key.textContent = nearest(d.series[i], x); });
  });
  const hide = () => charts.forEach(chart => {
    chart.cursor.setAttribute('visibility', 'hidden'); chart.at.textContent = '';
    chart.keys.forEach((key, i) => { key.textContent = chart.last[i]; });
  });
  for (const chart of charts) {
    chart.svg.addEventListener('pointermove', event => {
      const box = chart.svg.getBoundingClientRect(), d = chart.data;
      const x = ((event.clientX - box.left) / box.width * d.width - d.left) / d.span * d.length;
      show(Math.min(d.length, Math.max(0, x)));
    });
    chart.svg.addEventListener('pointerleave', hide);
  }
  addEventListener('beforeprint', () => document.querySelectorAll('details').forEach(d => { d.open = true; }));
})();
"""
