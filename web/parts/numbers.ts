/** Numbers as people read them. */

const MIB = 1 << 20;

export const count = (number: number) => number.toLocaleString("en");
export const percent = (share: number, digits = 1) => `${(100 * Math.min(Math.max(share, 0), 1)).toFixed(digits)}%`;
export const mib = (bytes: number) => `${(bytes / MIB).toLocaleString("en", { maximumFractionDigits: 1 })} MiB`;
export const gib = (bytes: number) => `${(bytes / (1024 * MIB)).toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 })} GiB`;
export const ms = (number: number) => number.toFixed(number < 10 ? 2 : number < 100 ? 1 : 0);
/** A sentence of what begins in lower case and ends without a period. */
export const sentence = (text: string) => (text === "" ? "" : `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`);
