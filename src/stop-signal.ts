/** One Ctrl-C in a terminal arrives twice, because npm passes it on. A second one within this time, in ms, is the same. */
const SAME_PRESS = 1_000;

/** Resolves at the first signal to stop. The second one ends the process at once. */
export function stopSignal(): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  let first: number | undefined;
  const onSignal = () => {
    const now = performance.now();
    first ??= now;
    if (now - first > SAME_PRESS) process.exit(1);
    resolve();
  };
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, onSignal);
  return promise;
}
