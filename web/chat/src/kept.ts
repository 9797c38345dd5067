/** Where the page's own files are kept: shared by the page and its service worker. */
export const PAGE_CACHE = "moa-chat";
