// Slack's blocks → nodes: those that the stand-in takes, see slack/blocks.py.

import { el, link } from "./dom.js";
import { glyphs, mrkdwn, plain } from "./mrkdwn.js";

const text = (object) => (object.type === "mrkdwn" ? [mrkdwn(object.text)] : lines(plain(object)));
const lines = (content) => content.split("\n").flatMap((line, i) => (i ? [el("br"), ...glyphs(line)] : glyphs(line)));

// Each block → a node; `press(button)` is called for a button without a link.
const BLOCKS = {
  header: (block) => el("p", { class: "b-header" }, ...text(block.text)),
  section: (block, press) =>
    el(
      "div",
      { class: "b-section" },
      block.text && el("div", { class: "b-text" }, ...text(block.text)),
      block.fields && el("div", { class: "b-fields" }, ...block.fields.map((field) => el("div", {}, ...text(field)))),
      block.accessory && element(block.accessory, press),
    ),
  context: (block) =>
    el("div", { class: "b-context" }, ...block.elements.map((part) => (part.type === "image" ? image(part) : el("span", {}, ...text(part))))),
  actions: (block, press) => el("div", { class: "b-actions" }, ...block.elements.map((part) => element(part, press))),
  divider: () => el("hr"),
  rich_text: (block) =>
    el("div", { class: "b-section b-text" }, ...block.elements.map((section) => el("div", {}, ...section.elements.flatMap(richText)))),
  image: (block) => image(block),
};

export const blocks = (list, press) => list.map((block) => BLOCKS[block.type]?.(block, press));

// A text or a link; what it says is no mark-up.
function richText({ type, text: content, url, style }) {
  const said = lines(plain({ text: content }));
  const node = type === "link" ? [link(url, said)] : said;
  return style?.bold ? [el("strong", {}, ...node)] : node;
}

function element(button, press) {
  const look = `button ${button.style ?? ""}`;
  if (button.url) return link(button.url, plain(button.text), { class: look });
  const node = el("button", { class: look, type: "button", disabled: !press || !button.action_id }, plain(button.text));
  node.addEventListener("click", () => (button.confirm ? ask(node, button, press) : press(button, node)));
  return node;
}

// Slack asks before it sends a press that has `confirm`.
function ask(node, { confirm, ...button }, press) {
  const dialog = el(
    "dialog",
    { class: "b-confirm" },
    el("p", { class: "b-header" }, plain(confirm.title)),
    el("p", {}, plain(confirm.text)),
    el("form", { method: "dialog", class: "b-actions" }, el("button", { value: "deny" }, plain(confirm.deny)), el("button", { value: "confirm" }, plain(confirm.confirm))),
  );
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (dialog.returnValue === "confirm") press(button, node);
  });
  document.body.append(dialog);
  dialog.showModal();
}

// Pictures of other servers are not loaded: the page talks to nobody else. Uploaded files are its own.
function image(part) {
  const id = part.slack_file?.id;
  if (!id) return el("span", { class: "b-image" }, `🖼 ${part.alt_text}`);
  return file({ id, name: part.alt_text, mimetype: "image/png" }, part.alt_text);
}

export function file({ id, name, title, mimetype }, alt) {
  const address = new URL(`/slack/files/${encodeURIComponent(id)}`, location.href);
  if (mimetype === "image/png" || name.endsWith(".png")) return el("img", { class: "b-file", src: address.href, alt: alt ?? title ?? name });
  return link(address, `📄 ${title || name}`, { class: "b-image" });
}

// What a screen reader is told of a message.
export function summary(message) {
  const header = message.blocks.find((block) => block.type === "header");
  return plain(header?.text ?? { text: message.text }).replace(/<[^>]*>/g, "").slice(0, 200);
}
