import { pauseAfter } from "./undelivered.ts";

/** What an operator may want to know of the sink. */
export type HealthObserver = Readonly<{
  /** The sink takes nothing: it is tried again after `pauseMs`. */
  down?(trouble: { attempts: number; pauseMs: number; error: string }): void;
  /** It does again. */
  up?(): void;
}>;

/** What this process knows of the sink, by what it has taken and what not. */
export class SinkHealth {
  readonly #observer: HealthObserver;
  /** How often in a row it took nothing, and until when it is left alone. */
  #downs = 0;
  #pauseUntil = 0;
  #tookAt = Number.NEGATIVE_INFINITY;
  #futile = 0;

  constructor(observer: HealthObserver) {
    this.#observer = observer;
  }

  get isDown(): boolean {
    return this.#downs > 0;
  }

  get isPaused(): boolean {
    return performance.now() < this.#pauseUntil;
  }

  /** Whether it has taken an event within the last `ms` milliseconds, and did not fail since. */
  tookWithin(ms: number): boolean {
    return !this.isDown && performance.now() - this.#tookAt < ms;
  }

  /** It has taken an event. */
  took(): void {
    if (this.isDown) this.#observer.up?.();
    this.#downs = 0;
    this.#pauseUntil = 0;
    this.#futile = 0;
    this.#tookAt = performance.now();
  }

  /** It took nothing of what was new: nothing more is sent for a while. */
  failed(error: string): void {
    this.#downs += 1;
    const pauseMs = pauseAfter(this.#downs);
    this.#pauseUntil = performance.now() + pauseMs;
    this.#observer.down?.({ attempts: this.#downs, pauseMs, error });
  }

  /** It took nothing of what was tried again. Answers how often in a row that was so before, with nothing taken since. */
  retriedInVain(): number {
    this.#futile += 1;
    return this.#futile - 1;
  }
}
