"""The style sheet of a training report. ``--series-1`` and so on are the colours of curves, see figures.py."""

STYLE = """
:root {
  --page: #f4f6f8; --card: #ffffff; --ink: #1b2530; --muted: #66727f; --grid: #e3e8ed;
  --series-1: #0b6fa8; --series-2: #d9622b; --series-3: #1f8a5b;
  --series-4: #a0468f; --series-5: #8a6d1b; --series-6: #5b5fc7;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0d141b; --card: #151f29; --ink: #e4ebf1; --muted: #93a1ae; --grid: #28343f;
    --series-1: #5bb8ec; --series-2: #f08d5b; --series-3: #54c391;
    --series-4: #d68ac8; --series-5: #d3b455; --series-6: #9da1f5;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
header, main { max-width: 88rem; margin: 0 auto; padding: 0 clamp(1rem, 3vw, 2.5rem); }
header { padding-top: 2.5rem; }
main { padding-bottom: 4rem; }
.kicker { margin: 0; color: var(--series-1); font-weight: 600; }
h1 { margin: 0; font-size: clamp(2rem, 5vw, 3rem); line-height: 1.15; overflow-wrap: anywhere; }
.status { margin: .3rem 0 0; color: var(--muted); }
h2 { margin: 2.2rem 0 .8rem; font-size: 1.35rem; }
h3 { margin: 0; font-size: 1.05rem; }

.tiles { display: flex; flex-wrap: wrap; gap: 1rem; margin-top: 1.6rem; }
.tiles div, figure { background: var(--card); border: 1px solid var(--grid); border-radius: .7rem; }
.tiles div { flex: 1 1 9rem; padding: .9rem 1.1rem; }
.tiles b { display: block; font-size: 1.7rem; line-height: 1.2; }
.tiles span { color: var(--muted); font-size: .9rem; }

.tables { display: grid; align-items: start; gap: 0 2.5rem; }
.tables { grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
.tables > div { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: .95rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--grid); text-align: left; vertical-align: top; }
th { color: var(--muted); font-weight: 500; }
th[scope=row] { width: 10rem; }
th, .numbers td { white-space: nowrap; }
.numbers :is(th, td):not(:first-child) { text-align: right; }

.cards { columns: 2 32rem; column-gap: 1.2rem; }
figure { margin: 0 0 1.2rem; padding: 1.1rem 1.2rem .8rem; break-inside: avoid; }
figcaption { margin: .15rem 0 .7rem; color: var(--muted); font-size: .95rem; }
figure svg { display: block; width: 100%; height: auto; }
figure svg text { font-family: system-ui, sans-serif !important; }
.events ul { padding-left: 1.2rem; }
"""
