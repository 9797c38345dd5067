/** The book as `vite.config.js` makes it. */
declare module "virtual:book" {
  const chapters: readonly { title: string; text: string }[];
  export default chapters;
}
