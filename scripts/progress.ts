/** Characters of the bar. */
const WIDTH = 40;

/** Redraws a bar in place on a terminal; elsewhere only the end is worth a line. */
export function drawProgress(done: number, total: number): void {
  const share = total === 0 ? 1 : done / total;
  const bar = "#".repeat(Math.round(WIDTH * share)).padEnd(WIDTH, ".");
  const text = `[${bar}] ${Math.floor(100 * share)}% ${done}/${total}`;
  if (process.stdout.isTTY) process.stdout.write(`\r${text}`);
  else if (done === total) process.stdout.write(text);
}
