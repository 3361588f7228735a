/** How callers share connections, and connections servers. */

/** Callers share connections, as those of a backend do that has a channel to each of a few replicas. */
const CALLERS_PER_CONNECTION = 16;

/** The port of each connection, to each server as many. With callers taking them in turn, servers get as many callers. */
export function spread(callers: number, ports: readonly number[]): number[] {
  const each = Math.ceil(callers / CALLERS_PER_CONNECTION / ports.length);
  return Array.from({ length: each }, () => ports).flat();
}
