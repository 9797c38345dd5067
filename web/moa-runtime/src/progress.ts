/** Load progress: exact bytes, with the three fields that WebLLM's pages read kept beside them. */

import type { LoadReport } from "./download.js";

/** Where loading stands. */
export type LoadPhase = "manifest" | "device" | "download" | "warmup" | "ready";

/** One report of progress. */
export interface LoadProgress {
  phase: LoadPhase;
  /** Bytes of weights that are here; each is checked before it is counted for the last time. */
  loaded: number;
  /** Bytes of weights in all; 0 until the manifest is read. */
  total: number;
  /** From 0 to 1. */
  progress: number;
  /** Seconds since loading began. */
  timeElapsed: number;
  /** Mean rate so far. */
  bytesPerSec: number;
  /** Whether everything so far came from this device's storage. */
  fromCache: boolean;
  /** One sentence for people. */
  text: string;
  /** Why the weights are not kept on this device, as soon as that is known. */
  notKept?: string;
}

const MIB = 1024 * 1024;
/** Reports of bytes come no more often than a page can show them. */
const EVERY_MS = 50;

/** Turns byte counts into reports. */
export class ProgressMeter {
  readonly #start = performance.now();
  #downloadStart: number | undefined;
  #lastReport = -Infinity;
  /** The newest count that came too early to be reported: it is, if none follows. */
  #late: ReturnType<typeof setTimeout> | undefined;
  readonly #total: number;
  readonly #report: (progress: LoadProgress) => void;

  constructor(total: number, report: (progress: LoadProgress) => void) {
    this.#total = total;
    this.#report = report;
  }

  /** Drops what has not been reported yet. */
  end(): void {
    clearTimeout(this.#late);
    this.#late = undefined;
  }

  at(phase: LoadPhase, loaded: number, report?: Readonly<LoadReport>): void {
    const now = performance.now();
    this.end();
    if (phase === "download") {
      this.#downloadStart ??= now;
      const wait = this.#lastReport + EVERY_MS - now;
      if (loaded < this.#total && wait > 0) {
        this.#late = setTimeout(() => this.at(phase, loaded, report), wait);
        return;
      }
      this.#lastReport = now;
    }
    const seconds = (now - (this.#downloadStart ?? now)) / 1000;
    const total = this.#total;
    const mib = (bytes: number) => (bytes / MIB).toFixed(1);
    const fromCache = report !== undefined && report.cachedBytes > 0 && report.fetchedBytes === 0;
    const text = {
      manifest: "Reading the manifest",
      device: "Preparing the GPU",
      download: `Loading weights${fromCache ? " from this device" : ""}: ${mib(loaded)} of ${mib(total)} MiB`,
      warmup: "Warming up",
      ready: "Ready",
    }[phase];
    this.#report({
      phase,
      loaded,
      total,
      progress: phase === "ready" ? 1 : total > 0 ? loaded / total : 0,
      timeElapsed: (now - this.#start) / 1000,
      bytesPerSec: seconds > 0 ? loaded / seconds : 0,
      fromCache,
      text,
      ...(report?.notKept === undefined ? {} : { notKept: report.notKept }),
    });
  }
}
