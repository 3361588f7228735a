/** The results as bars, in an SVG that can be read on light and dark pages. */
import type { Cell } from "./measure.ts";
import { type Machine, machineLine, type Result } from "./report.ts";
import { compared, nameOf, type SideName } from "./scenario.ts";

const WIDTH = 800;
const LABEL = 150;
const BAR = 16;
const STEP = 21;
const GAP = 36;
const TOP = 76;
/** Room for the number behind the longest bar. */
const VALUE = 150;

const STYLE = `
  text { font: 12px system-ui, sans-serif; fill: #1f2328 }
  .title { font-size: 16px; font-weight: 600 } .name { font-weight: 600 } .small { fill: #59636e }
  .service { fill: #0969da } .one, .closed { fill: #54aeff }
  .stepwise { fill: #afb8c1 } .oneShot, .echo { fill: #8c959f }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .small { fill: #9198a1 } .service { fill: #4493f8 } .one, .closed { fill: #1f6feb }
    .stepwise { fill: #656c76 } .oneShot, .echo { fill: #818b98 }
  }`;

type Bar = { side: SideName; cell: Cell };

function escaped(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function whoCalls({ callers, rate }: Cell): string {
  if (rate !== undefined) return `of ${rate.toLocaleString("en-US")} wanted`;
  return callers === 1 ? "1 caller" : `${callers} callers`;
}

/** One bar for each side: the measurement that its ratio is made of. */
function barsOf({ scenario, sides }: Result): Bar[] {
  const [first] = scenario.bars;
  const service = compared(first, sides)?.service ?? sides.service?.[0];
  const others = (Object.keys(sides) as SideName[]).flatMap((side) => {
    if (side === "service") return [];
    const bar = scenario.bars.find(({ against }) => against === side) ?? { ...first, against: side };
    const cell = compared(bar, sides)?.other;
    return cell ? [{ side, cell }] : [];
  });
  return service ? [{ side: "service", cell: service }, ...others] : others;
}

function group(result: Result, top: number): string[] {
  const { scenario, verdicts } = result;
  const alone = scenario.alone === true;
  const bars = barsOf(result);
  const amount = ({ cell }: Bar) => (alone ? cell.p50 : cell.perSecond);
  const longest = Math.max(...bars.map(amount));
  const ratio = verdicts[0];
  const note = ratio ? `${ratio.ratio.toFixed(ratio.ratio < 1 ? 2 : 1)}x ${nameOf(ratio.against, scenario)}` : "";
  const answers = scenario.overload === undefined ? "requests a second" : "good answers a second";
  const unit = alone ? "milliseconds, less is better" : answers;
  return [
    `<text class="name" x="16" y="${top}">${escaped(scenario.name)}</text>`,
    `<text class="small" x="${LABEL}" y="${top}">${escaped([unit, note].filter(Boolean).join(", "))}</text>`,
    ...bars.flatMap((bar, index) => {
      const y = top + 8 + index * STEP;
      const length = Math.max(1, ((WIDTH - LABEL - VALUE) * amount(bar)) / longest);
      const value = alone ? amount(bar).toFixed(2) : Math.round(amount(bar)).toLocaleString("en-US");
      return [
        `<text x="${LABEL - 8}" y="${y + 12}" text-anchor="end">${escaped(nameOf(bar.side, scenario))}</text>`,
        `<rect class="${bar.side}" x="${LABEL}" y="${y}" width="${length.toFixed(1)}" height="${BAR}" rx="2"/>`,
        `<text x="${(LABEL + length + 6).toFixed(1)}" y="${y + 12}">${value} <tspan class="small">${whoCalls(bar.cell)}</tspan></text>`,
      ];
    }),
  ];
}

/** Draws the measurements that the ratios are made of. */
export function chart(machine: Machine, results: readonly Result[]): string {
  let top = TOP;
  const groups = results.flatMap((result) => {
    const lines = group(result, top);
    top += barsOf(result).length * STEP + GAP;
    return lines;
  });
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${top - 12}" role="img">`,
    `<title>Doorbuster beside hand-written SQL</title>`,
    `<style>${STYLE}\n</style>`,
    `<text class="title" x="16" y="28">Doorbuster beside hand-written SQL</text>`,
    `<text class="small" x="16" y="48">${escaped(machineLine(machine))}</text>`,
    ...groups,
    "</svg>",
    "",
  ].join("\n");
}
