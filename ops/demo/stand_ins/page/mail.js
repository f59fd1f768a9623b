// The mailbox: newest first; an opened mail stays open, its HTML in a sandboxed frame of its own.

import { el, reconcile, time } from "./dom.js";

const list = document.getElementById("mails");
const empty = document.getElementById("mail-empty");
const STATE = /^(Firing|Resolved)\b/m;

export function showMails(mails) {
  empty.hidden = mails.length > 0;
  reconcile(list, mails.toReversed(), (mail) => mail.id, item);
}

// The text's first line, which says as the subject does what is wrong, or that it is over.
export const snippet = (mail) => mail.text.trimStart().split("\n", 1)[0].trimEnd();

function item(mail) {
  const body = el("div", { class: "mail-body", id: `mail-${mail.id}`, hidden: true });
  const open = el(
    "button",
    { type: "button", class: "mail-open", "aria-expanded": "false", "aria-controls": body.id },
    el("span", { class: "mail-line" }, el("span", { class: "mail-from" }, name(mail.from)), time(mail.at)),
    el("span", { class: "mail-subject" }, mail.subject || "(no subject)"),
    snippet(mail) && el("span", { class: `mail-snippet ${STATE.exec(mail.text)?.[1] ?? ""}` }, snippet(mail)),
    el("span", { class: "mail-to" }, `to ${mail.to.join(", ")}`),
  );
  open.addEventListener("click", () => {
    if (!body.firstChild) body.append(...content(mail));
    body.hidden = !body.hidden;
    node.classList.remove("unread");
    open.setAttribute("aria-expanded", String(!body.hidden));
  });
  const node = el("li", { class: "mail-item unread" }, open, body);
  return node;
}

const name = (from) => from.replace(/\s*<[^<>]*>$/, "").replaceAll('"', "") || from;

function content(mail) {
  const frame = el("iframe", {
    src: `/mail/${mail.id}`,
    title: `Mail: ${mail.subject}`,
    sandbox: "allow-popups allow-popups-to-escape-sandbox",
  });
  const text = el("pre", { class: "mail-text", tabindex: "0", role: "region", "aria-label": "Plain text" }, mail.text || "(no plain text)");
  const choose = (html) => {
    frame.hidden = !html;
    text.hidden = html;
    asHtml.setAttribute("aria-pressed", String(html));
    asText.setAttribute("aria-pressed", String(!html));
  };
  const asHtml = el("button", { type: "button", disabled: !mail.html }, "HTML");
  const asText = el("button", { type: "button" }, "Plain text");
  asHtml.addEventListener("click", () => choose(true));
  asText.addEventListener("click", () => choose(false));
  choose(Boolean(mail.html));
  const rows = Object.entries(mail.headers).map(([key, value]) => el("tr", {}, el("th", { scope: "row" }, key), el("td", {}, value)));
  const headers = el("details", {}, el("summary", {}, "Headers"), el("table", {}, el("tbody", {}, ...rows)));
  const tools = el("div", { class: "segmented", role: "group", "aria-label": "Show the mail as" }, asHtml, asText);
  return [tools, mail.html ? frame : null, text, headers].filter(Boolean);
}
