/**
 * The pages' service worker: keeps the files of this folder, so that the pages open without a network, and tells the pages of
 * every request. The server comes first, so that a new version is seen at once. The model is not its business: requests
 * outside of this folder go their way untouched.
 */

const KEPT = "moa-pages";

self.addEventListener("install", (event) => event.waitUntil(self.skipWaiting()));
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("message", (event) => {
  const urls = (event.data.keep ?? []).filter((url) => url.startsWith(self.registration.scope));
  const files = [...new Set(urls.map(plain))];
  event.waitUntil(caches.open(KEPT).then((kept) => Promise.allSettled(files.map((file) => kept.add(file)))));
});
self.addEventListener("fetch", (event) => {
  const { request } = event;
  event.waitUntil(tell(request.url));
  if (request.method === "GET" && request.url.startsWith(self.registration.scope)) event.respondWith(serverOrKept(request));
});

/** `?plan=...` is the same page. */
function plain(url) {
  const address = new URL(url);
  address.search = address.hash = "";
  return address.href;
}

async function tell(url) {
  for (const client of await self.clients.matchAll()) client.postMessage({ requested: url });
}

async function serverOrKept(request) {
  const key = plain(request.url);
  try {
    const response = await fetch(request);
    if (response.ok) await (await caches.open(KEPT)).put(key, response.clone());
    return response;
  } catch (error) {
    const kept = await (await caches.open(KEPT)).match(key);
    if (kept) return kept;
    throw error;
  }
}
