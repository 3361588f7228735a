/** An audit for those who read it: people, and machines. */
import type { Audit, Verdict } from "./audit.ts";

const WIDTH = 9;
const number = new Intl.NumberFormat("en-US");

/** Lines of text. */
export function toText({ asOf, ms, verdicts }: Audit): string {
  const count = (verdict: Verdict["verdict"]) => verdicts.filter((one) => one.verdict === verdict).length;
  const sum = `${count("holds")} hold, ${count("broken")} broken, ${count("skipped")} skipped`;
  const when = `as of ${asOf.toISOString()}, in ${(ms / 1_000).toFixed(1)} s`;
  return [...verdicts.flatMap(linesOf), `${sum}; ${when}`].join("\n");
}

const marks = { holds: "ok", broken: "BROKEN", skipped: "skipped" };

function linesOf({ name, verdict, table, rows, broken, ids, note }: Verdict): string[] {
  const indent = " ".repeat(WIDTH);
  const first = `${marks[verdict].padEnd(WIDTH)}${name}: `;
  if (verdict === "skipped") return [first + note];
  const seen = `${number.format(rows)} rows of ${table}`;
  if (verdict === "holds") return [first + seen + (note ? `; ${note}` : "")];
  const more = broken > ids.length ? [`${indent}  and ${number.format(broken - ids.length)} more`] : [];
  return [`${first}${number.format(broken)} broken, of ${seen}`, ...ids.map((id) => `${indent}  ${id}`), ...more];
}

/** One object. */
export function toJson({ asOf, ms, verdicts }: Audit): string {
  const holds = isSound(verdicts);
  return JSON.stringify({ asOf: asOf.toISOString(), seconds: Math.round(ms) / 1_000, holds, invariants: verdicts });
}

/** Whether nothing is broken. */
export function isSound(verdicts: readonly Verdict[]): boolean {
  return verdicts.every(({ verdict }) => verdict !== "broken");
}
