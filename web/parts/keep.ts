/** The pages' service worker, seen from a page: it keeps their files, and tells of every request that a page makes. */

/** Has the files of this page kept, so that it opens without a network; the package keeps the model. */
export async function keepPages(): Promise<void> {
  if (!navigator.serviceWorker) return;
  try {
    await navigator.serviceWorker.register(new URL("../offline.js", location.href));
    const { active } = await navigator.serviceWorker.ready;
    if (!navigator.serviceWorker.controller) {
      await new Promise((resolve) => navigator.serviceWorker.addEventListener("controllerchange", resolve, { once: true }));
    }
    // What came before the worker was there.
    const urls = [location.href, ...performance.getEntriesByType("resource").map(({ name }) => name)];
    active?.postMessage({ keep: urls });
  } catch {
    // Private windows refuse: the pages then need their server.
  }
}

/**
 * Calls back with the address of every request that this page or a worker of it makes from now on. Returns whether
 * somebody counts: only with a service worker does a page hear of its workers' requests.
 */
export function watchRequests(heard: (url: string) => void): boolean {
  if (!navigator.serviceWorker?.controller) return false;
  navigator.serviceWorker.addEventListener("message", ({ data }) => {
    const { requested } = data as { requested?: string };
    if (requested !== undefined) heard(requested);
  });
  return true;
}
