"""How the topology page looks."""

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --good: #1a7f37; --bad: #c93030;
  --warn: #a66a00; --lead: #3557c0; --dim: #777; }
* { box-sizing: border-box; }
body { margin: 0; font: 15px/1.45 system-ui, sans-serif; }
header { display: flex; flex-wrap: wrap; align-items: center; gap: .7rem; padding: 1rem 1.5rem;
  border-bottom: 1px solid var(--line); background: var(--soft); }
h1 { font-size: 1.4rem; margin: 0; }
h2 { font-size: 1.05rem; margin: 0 0 .5rem; }
main { padding: 0 1.5rem; }
section { margin: 1.6rem 0; }
footer { padding: 1rem 1.5rem; border-top: 1px solid var(--line); opacity: .65; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; font-weight: 600; opacity: .65; font-size: .85em; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td { overflow-wrap: anywhere; }
code { font: .87em ui-monospace, monospace; white-space: nowrap; }
small { opacity: .65; }
.badge { display: inline-block; padding: 0 .55em; border-radius: 1em; font-size: .85em; color: #fff;
  white-space: nowrap; margin-right: .3em; }
.good { background: var(--good); } .bad { background: var(--bad); } .warn { background: var(--warn); }
.lead { background: var(--lead); } .dim { background: var(--dim); }
.none { opacity: .65; margin: .3rem 0; }
.stale { border-left: 4px solid var(--bad); padding: .2rem .7rem; margin: .3rem 0 .6rem; }
.graph { max-width: 100%; max-height: 70vh; background: #fff; border-radius: 6px;
  border: 1px solid var(--line); }
"""
