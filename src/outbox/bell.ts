/** Wakes everybody who waits for it. */
export class Bell {
  readonly #waiting = new Set<() => void>();
  #rings = 0;

  /** How often it has rung. */
  get rings(): number {
    return this.#rings;
  }

  ring(): void {
    this.#rings += 1;
    const waiting = [...this.#waiting];
    for (const wake of waiting) wake();
  }

  /**
   * Resolves when it rings, at once if it has since it had rung `seen` times, or when `signal` fires, or after `limitMs`
   * milliseconds.
   */
  wait(seen: number, signal: AbortSignal, limitMs?: number): Promise<void> {
    if (this.#rings !== seen || signal.aborted) return Promise.resolve();
    return new Promise((resolve) => {
      const wake = () => {
        this.#waiting.delete(wake);
        signal.removeEventListener("abort", wake);
        clearTimeout(timer);
        resolve();
      };
      const timer = limitMs === undefined ? undefined : setTimeout(wake, limitMs);
      this.#waiting.add(wake);
      signal.addEventListener("abort", wake);
    });
  }
}
