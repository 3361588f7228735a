/** Characters of the bar. */
const WIDTH = 40;

function barOf(done: number, total: number): string {
  const share = total === 0 ? 1 : done / total;
  const bar = "#".repeat(Math.round(WIDTH * share)).padEnd(WIDTH, ".");
  return `[${bar}] ${Math.floor(100 * share)}% ${done}/${total}`;
}

/** Redraws a bar in place on a terminal; elsewhere only the end is worth a line. */
export function drawProgress(done: number, total: number): void {
  const text = barOf(done, total);
  if (process.stdout.isTTY) process.stdout.write(`\r${text}`);
  else if (done === total) process.stdout.write(text);
}

/** The same on stderr, for a command whose output others read: gone at the end, and nothing where that is no terminal. */
export function drawAside(done: number, total: number): void {
  const eraseLine = "\r\x1b[K";
  if (process.stderr.isTTY) process.stderr.write(eraseLine + (done === total ? "" : barOf(done, total)));
}
