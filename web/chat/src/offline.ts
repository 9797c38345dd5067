/**
 * The page's service worker: keeps the files of this folder, so that the page opens without a network. The server comes
 * first, so that a new version is seen at once. The model is not its business.
 */

import { PAGE_CACHE } from "./kept.js";

const worker = self as unknown as {
  registration: { scope: string };
  skipWaiting(): Promise<void>;
  clients: { claim(): Promise<void> };
  addEventListener(type: string, listener: (event: ExtendableEventLike) => void): void;
};

interface ExtendableEventLike {
  request: Request;
  waitUntil(work: Promise<unknown>): void;
  respondWith(answer: Promise<Response>): void;
}

worker.addEventListener("install", (event) => event.waitUntil(worker.skipWaiting()));
worker.addEventListener("activate", (event) => event.waitUntil(worker.clients.claim()));
worker.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method !== "GET" || !request.url.startsWith(worker.registration.scope)) return;
  event.respondWith(serverOrKept(request));
});

async function serverOrKept(request: Request): Promise<Response> {
  // `?plan=...` is the same page.
  const key = new URL(request.url);
  key.search = "";
  try {
    const response = await fetch(request);
    if (response.ok) await (await caches.open(PAGE_CACHE)).put(key.href, response.clone());
    return response;
  } catch (error) {
    const kept = await (await caches.open(PAGE_CACHE)).match(key.href);
    if (kept) return kept;
    throw error;
  }
}
