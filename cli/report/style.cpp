#include "cli/report/style.h"

namespace minipuzzle::report {

// Colours: blue, amber and crimson differ in hue and in lightness, so that they stay apart for colour-blind
// readers and in print; each has at least 3:1 against the ground it lies on, in both themes.
const char* const kStyle = R"css(
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--ink:#1b2330;--soft:#566173;--line:#d9dee6;--grid:#e9ecf1;
--mamba:#2a6cc4;--ffn:#c47f00;--attention:#b3124f;--weights:#5d6b80;--kv:#b3124f;--ssm:#2a6cc4;--conv:#7a9fd4;--buffers:#98a2b1;
--gone:#c5ccd6;--accent:#0b7a5c;--budget:#8b3fb0;--best-row:#e9f5f0;--loss:#2a6cc4;--kl-term:#b3124f;--ce-term:#c47f00;
--feature-term:#0b7a5c;--predicted:#8390a3;--on-bar:#fff;
--agree:#86cdb6;--below:#f0b3c4;--up:#762a83;--down:#1b7837;--band:#5d6b80}
@media(prefers-color-scheme:dark){:root{--page:#12161c;--card:#1a2028;--ink:#e8ecf2;--soft:#a3aebd;--line:#343d4a;
--grid:#28303b;--mamba:#6fb0ff;--ffn:#f2b640;--attention:#ff7fa6;--weights:#9aa8bc;--kv:#ff7fa6;--ssm:#6fb0ff;--conv:#4a78ad;
--buffers:#6b7686;--gone:#465161;--accent:#4fd1a5;--budget:#cf93f0;--best-row:#17312b;--loss:#6fb0ff;--kl-term:#ff7fa6;
--ce-term:#f2b640;--feature-term:#4fd1a5;--predicted:#8f9bad;--on-bar:#10141a;
--agree:#1f705a;--below:#80304a;--up:#d9a2f5;--down:#63d69d;--band:#9aa8bc}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif}
main{max-width:1160px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:26px;line-height:1.25;margin:0 0 4px;font-weight:650;letter-spacing:-.01em}
h2{font-size:18px;margin:0 0 2px;font-weight:650}
h3{font-size:15px;margin:22px 0 2px;font-weight:650}
.sub{color:var(--soft);margin:0 0 8px;overflow-wrap:anywhere}section .sub{font-size:14px}figure .sub{margin:8px 0 0;font-size:13px}
.badge{display:inline-block;border:1px solid currentColor;border-radius:99px;padding:1px 10px;font-size:13px;font-weight:600;color:var(--accent);margin-left:10px;vertical-align:3px;white-space:nowrap}
.badge.caution{color:var(--budget)}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:20px 22px 18px;margin-top:18px}
section>p,figcaption{color:var(--soft);font-size:14px;margin:2px 0 10px;max-width:90ch}
figure{margin:6px 0 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:12px;margin-top:20px}
.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:13px 16px}
.tile b{display:block;font-size:22px;line-height:1.3;font-weight:650;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:13px;display:block}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;margin:10px 0 8px;font-size:13px;color:var(--ink)}
.legend span{display:inline-flex;align-items:center;gap:7px}
.swatch{display:inline-block;width:12px;height:12px;border-radius:2px;background:var(--soft)}
.swatch.mamba{background:var(--mamba)}.swatch.ffn{background:var(--ffn)}.swatch.attention{background:var(--attention)}
.swatch.gone{background:var(--gone);height:4px;border-radius:0}
.swatch.unknown{background:none;border:1.5px dashed var(--soft)}
.swatch.cut{background:linear-gradient(165deg,var(--soft) 32%,transparent 32% 44%,var(--soft) 44% 56%,transparent 56% 68%,var(--soft) 68%)}
.swatch.crossed{background:linear-gradient(45deg,transparent 43%,var(--ink) 43% 57%,transparent 57%),linear-gradient(135deg,transparent 43%,var(--ink) 43% 57%,transparent 57%);width:9px;height:9px}
.swatch.weights{background:var(--weights)}.swatch.kv{background:var(--kv)}.swatch.ssm{background:var(--ssm)}.swatch.conv{background:var(--conv)}.swatch.buffers,.swatch.workspace{background:var(--buffers)}
.swatch.frontier{height:3px;width:20px;border-radius:0;background:var(--accent)}
.swatch.of-measured{background:var(--mamba)}
.swatch.predicted{border-radius:50%;background:none;border:2px solid var(--predicted);width:11px;height:11px}
.swatch.measured{border-radius:50%;background:var(--mamba);width:10px;height:10px}
.swatch.ring{border-radius:50%;background:none;border:2px solid var(--accent);width:14px;height:14px}
.swatch.teacher-mark{background:var(--ink);width:9px;height:9px;transform:rotate(45deg);border-radius:0}
.swatch.budget{width:20px;height:0;border-radius:0;background:none;border-top:2px dashed var(--budget)}
.swatch.up{background:var(--up)}.swatch.down{background:var(--down)}.swatch.ground{background:var(--grid);border:1px solid var(--line)}
.swatch.removal{height:3px;width:20px;border-radius:0;background:var(--ink)}
.swatch.additive{width:20px;height:0;border-radius:0;background:none;border-top:2px dashed var(--predicted)}
.swatch.band{background:var(--band);opacity:.28}
.swatch.line{height:3px;width:20px;border-radius:0}
.swatch.loss{background:var(--loss)}.swatch.kl-term{background:var(--kl-term)}.swatch.ce-term{background:var(--ce-term)}.swatch.feature-term{background:var(--feature-term)}.swatch.rate{background:var(--soft)}
svg[role]{display:block;width:100%;height:auto;overflow:visible;font-family:inherit}
svg text{fill:var(--ink);font-size:12px;font-variant-numeric:tabular-nums}
svg .tick,svg .axis-title{fill:var(--soft)}svg .small{font-size:11px}svg .strong{font-size:13px;font-weight:600}
svg .halo{paint-order:stroke;stroke:var(--card);stroke-width:4px;stroke-linejoin:round}
svg .budget-label{fill:var(--budget)}
.grid{stroke:var(--grid)}.axis{stroke:var(--soft)}.leader{stroke:var(--line)}
.bar.mamba .body,.cell.mamba{fill:var(--mamba)}.bar.ffn .body,.cell.ffn{fill:var(--ffn)}.bar.attention .body,.cell.attention{fill:var(--attention)}
.bar.unknown .body{fill:none;stroke-width:1;stroke-dasharray:3 3}.bar.unknown.mamba .body{stroke:var(--mamba)}.bar.unknown.ffn .body{stroke:var(--ffn)}.bar.unknown.attention .body{stroke:var(--attention)}
.bar:hover .body{opacity:.75}
.break{fill:var(--card)}.interval{stroke:var(--ink);stroke-width:1.2}
.cross{stroke:var(--ink);stroke-width:1.5;fill:none}
.cell.gone{fill:var(--gone)}
.frontier{fill:none;stroke:var(--accent);stroke-width:2}.frontier.of-measured{stroke:var(--mamba);stroke-width:1.6}
.predicted{fill:var(--card);fill-opacity:.6;stroke:var(--predicted);stroke-width:1.4}
.measured{fill:var(--mamba);stroke:var(--card);stroke-width:.8}
.predicted.paired{stroke-opacity:.45}.identity{stroke:var(--predicted);stroke-width:1.4;stroke-dasharray:5 4}
.ring{fill:none;stroke:var(--accent);stroke-width:2}
.teacher-mark{fill:var(--ink);stroke:var(--card)}
line.budget{stroke:var(--budget);stroke-width:1.6;stroke-dasharray:6 4}
.memory.weights{fill:var(--weights)}.memory.kv{fill:var(--kv)}.memory.ssm{fill:var(--ssm)}.memory.conv{fill:var(--conv)}.memory.buffers,.memory.workspace{fill:var(--buffers)}
svg .on-bar{fill:var(--on-bar);font-weight:600}
polyline{fill:none;stroke-linejoin:round}
.loss{stroke:var(--loss)}.kl-term{stroke:var(--kl-term)}.ce-term{stroke:var(--ce-term)}.feature-term{stroke:var(--feature-term)}.width-line{stroke:var(--ffn)}
.raw{stroke-width:1;stroke-opacity:.3}.smooth{stroke-width:2.2}
.dot.loss{fill:var(--loss)}.dot.kl-term{fill:var(--kl-term)}.dot.ce-term{fill:var(--ce-term)}.dot.feature-term{fill:var(--feature-term)}.dot.width-line{fill:var(--ffn)}.dot.rate{fill:var(--soft)}
polyline.rate{stroke:var(--soft);stroke-width:1.6}
.heat.agree{fill:var(--agree)}.heat.below{fill:var(--below)}.heat.up{fill:var(--up)}.heat.down{fill:var(--down)}
.heat.none,.heat.zero{fill:var(--card)}.heat.ground{fill:var(--grid)}.outline{fill:none;stroke:var(--line)}
.s0{fill-opacity:0}.s1{fill-opacity:.1}.s2{fill-opacity:.2}.s3{fill-opacity:.3}.s4{fill-opacity:.4}.s5{fill-opacity:.5}
.s6{fill-opacity:.6}.s7{fill-opacity:.7}.s8{fill-opacity:.8}.s9{fill-opacity:.9}
svg .metric{font-weight:600;fill:var(--soft)}
.band{fill:var(--band);fill-opacity:.2}.removal{stroke:var(--ink);stroke-width:1.6}
.additive{stroke:var(--predicted);stroke-width:1.8;stroke-dasharray:6 4}
.point{stroke:var(--card);stroke-width:1}.point.mamba{fill:var(--mamba)}.point.ffn{fill:var(--ffn)}.point.attention{fill:var(--attention)}
svg .of-mamba{fill:var(--mamba)}svg .of-ffn{fill:var(--ffn)}svg .of-attention{fill:var(--attention)}
.beside{display:flex;flex-wrap:wrap;gap:8px 26px;align-items:flex-start}.beside>svg{flex:1 1 480px;min-width:0}.beside>.scroll{flex:0 1 auto}.beside table{width:auto}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:13px;width:100%;margin-top:10px;font-variant-numeric:tabular-nums}
th{font-weight:600;color:var(--soft);text-align:left;border-bottom:1px solid var(--line);padding:4px 10px 4px 0;white-space:nowrap}
td{border-bottom:1px solid var(--grid);padding:4px 10px 4px 0;white-space:nowrap}
th.number,td.number{text-align:right}th:last-child,td:last-child{padding-right:6px}th:first-child,td:first-child{padding-left:6px}
tr.best td{background:var(--best-row);font-weight:600}tr.sum td{font-weight:600;border-top:1px solid var(--line)}tr.teacher td{color:var(--soft)}
td:has(.strip){width:46%}.star{color:var(--accent)}
code{font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;white-space:pre-wrap;overflow-wrap:anywhere}
code.path{white-space:nowrap}
td.number code{text-align:left}
ul.words{margin:6px 0 0;padding-left:20px;max-width:95ch}ul.words li{margin:5px 0}
footer{color:var(--soft);font-size:13px;margin-top:20px}
@media(max-width:760px){figure>svg{min-width:760px}figure{overflow-x:auto}}
@media(max-width:960px){main{padding:20px 12px 40px}section{padding:16px 14px}table{font-size:12px}th,td{padding-right:7px}}
@media print{section{break-inside:avoid}body{background:#fff}}
)css";

}  // namespace minipuzzle::report
