// Slack's blocks → nodes: those that the stand-in takes, see slack_limits.py.

import { el, link } from "./dom.js";
import { glyphs, mrkdwn, plain } from "./mrkdwn.js";

const text = (object) => (object.type === "mrkdwn" ? [mrkdwn(object.text)] : lines(plain(object)));
const lines = (content) => content.split("\n").flatMap((line, i) => (i ? [el("br"), ...glyphs(line)] : glyphs(line)));

const BLOCKS = {
  header: (block) => el("p", { class: "b-header" }, ...text(block.text)),
  section: (block) =>
    el(
      "div",
      { class: "b-section" },
      block.text && el("div", { class: "b-text" }, ...text(block.text)),
      block.fields && el("div", { class: "b-fields" }, ...block.fields.map((field) => el("div", {}, ...text(field)))),
      block.accessory && element(block.accessory),
    ),
  context: (block) =>
    el("div", { class: "b-context" }, ...block.elements.map((part) => (part.type === "image" ? image(part) : el("span", {}, ...text(part))))),
  actions: (block) => el("div", { class: "b-actions" }, ...block.elements.map(element)),
  divider: () => el("hr"),
  image: (block) => image(block),
};

export const blocks = (list) => list.map((block) => BLOCKS[block.type]?.(block));

function element(button) {
  const look = `button ${button.style ?? ""}`;
  if (button.url) return link(button.url, plain(button.text), { class: look });
  return el("button", { class: look, type: "button", disabled: true }, plain(button.text));
}

// Pictures of other servers are not loaded: the page talks to nobody else.
const image = (part) => el("span", { class: "b-image" }, `🖼 ${part.alt_text}`);

// What a screen reader is told of a message.
export function summary(message) {
  const header = message.blocks.find((block) => block.type === "header");
  return plain(header?.text ?? { text: message.text }).replace(/<[^>]*>/g, "").slice(0, 200);
}
