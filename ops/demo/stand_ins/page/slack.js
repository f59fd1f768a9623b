// The Slack pane: one channel at a time, threads closed under their roots: whoever opens one sees it grow.

import { blocks, file } from "./blocks.js";
import { el, reconcile, time } from "./dom.js";
import { mrkdwn } from "./mrkdwn.js";

const list = document.getElementById("messages");
const tabs = document.getElementById("channels");
const scroll = document.getElementById("slack-scroll");
const empty = document.getElementById("slack-empty");
const presser = document.getElementById("presser");
const seen = new Map(); // channel → the last `ts` that had been there when it was last shown
let shown = null;
let channels = [];
let people = new Map(); // the IDs of users → their names

export function showSlack(state, persons) {
  channels = state;
  people = new Map(persons.map((person) => [person.id, person.real_name]));
  if (!presser.options.length) presser.append(...persons.map((person) => new Option(person.real_name, person.id)));
  // Begin where something is.
  shown ??= (channels.find((channel) => channel.messages.length) ?? channels[0])?.channel;
  draw();
}

function draw() {
  const atEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;
  const current = channels.find((channel) => channel.channel === shown);
  const messages = [...(current?.messages ?? []), ...(current?.ephemeral ?? [])].sort((a, b) => a.ts.localeCompare(b.ts));
  seen.set(shown, messages.at(-1)?.ts ?? "");
  reconcile(tabs, channels, (channel) => channel.channel, tab);
  empty.hidden = messages.length > 0;
  const replies = Map.groupBy(messages.filter((message) => message.thread_ts), (message) => message.thread_ts);
  const roots = new Set(messages.filter((message) => !message.thread_ts).map((message) => message.ts));
  const items = messages
    // A reply whose root is no longer kept stands by itself.
    .filter((message) => !message.thread_ts || message.reply_broadcast || !roots.has(message.thread_ts))
    .map((message) => ({ message, replies: replies.get(message.ts) ?? [] }));
  reconcile(list, items, (item) => `${shown} ${item.message.ts}`, thread);
  if (atEnd) scroll.scrollTop = scroll.scrollHeight;
}

function tab({ channel }) {
  const unread = el("span", { class: "count" });
  const archived = el("span", { class: "edited" });
  const button = el("button", { type: "button" }, channel, archived, " ", unread);
  button.addEventListener("click", () => {
    shown = channel;
    draw();
    scroll.scrollTop = scroll.scrollHeight;
  });
  button.update = (state) => {
    const more = state.messages.filter((message) => message.ts > (seen.get(channel) ?? "")).length;
    button.setAttribute("aria-pressed", String(channel === shown));
    archived.textContent = state.is_archived ? " (archived)" : "";
    unread.hidden = more === 0;
    unread.textContent = more ? `${more} new` : "";
  };
  return button;
}

function thread() {
  const slot = el("div");
  const label = el("summary");
  const replies = el("ol");
  const closed = el("details", { class: "replies" }, label, replies);
  const node = el("li", { class: "thread" }, slot, closed);
  let drawn = "";
  node.update = (item) => {
    const text = JSON.stringify(item.message);
    if (text !== drawn) slot.replaceChildren(article(item.message));
    drawn = text;
    closed.hidden = item.replies.length === 0;
    label.textContent = item.replies.length === 1 ? "1 reply" : `${item.replies.length} replies`;
    reconcile(replies, item.replies, (reply) => reply.ts, reply);
  };
  return node;
}

function reply() {
  const node = el("li");
  let drawn = "";
  node.update = (message) => {
    const text = JSON.stringify(message);
    if (text !== drawn) node.replaceChildren(article({ ...message, reply_broadcast: false }));
    drawn = text;
  };
  return node;
}

function article(message) {
  const head = el("p", { class: "by" }, el("b", {}, "keypulse"), " ", el("span", { class: "app" }, "APP"), " ", time(message.at));
  if (message.visible_to) head.append(el("span", { class: "edited" }, ` Only visible to ${people.get(message.visible_to) ?? "somebody"}`));
  // Slack marks an edit only where a message has no blocks.
  if (message.edited_at && !message.blocks.length) head.append(" ", el("span", { class: "edited" }, "(edited)"));
  if (message.reply_broadcast) head.append(el("span", { class: "edited" }, " replied to a thread"));
  const warning = el("p", { class: "b-warning", role: "alert" });
  const press = (button, node) => send(message, button, node, warning);
  const content = message.blocks.length ? blocks(message.blocks, press) : [el("div", { class: "b-text" }, mrkdwn(message.text))];
  const attachments = message.attachments.map((part) => attachment(part, press));
  const files = message.files.map((part) => file(part));
  return el(
    "article",
    { class: message.is_deleted ? "message deleted" : "message" },
    el("img", { class: "avatar", src: "/page/icon.svg", alt: "", width: 36, height: 36 }),
    el("div", { class: "content" }, head, ...[...content, ...attachments, ...files].filter(Boolean), warning),
  );
}

function attachment(part, press) {
  const node = el("div", { class: "b-attachment" }, ...(part.blocks ? blocks(part.blocks, press) : [el("div", { class: "b-text" }, mrkdwn(part.text ?? part.fallback ?? ""))]).filter(Boolean));
  if (/^#[0-9a-f]{6}$/i.test(part.color ?? "")) node.style.borderColor = part.color;
  return node;
}

// Sends a press; where the app does not acknowledge it in time, Slack shows a warning beside the button.
async function send(message, button, node, warning) {
  const channel = channels.find((each) => [...each.messages, ...each.ephemeral].some((one) => one.ts === message.ts));
  const body = { action: "press", channel: channel?.id, ts: message.ts, action_id: button.action_id, user: presser.value };
  node.disabled = true;
  warning.textContent = "";
  let acknowledged = false;
  try {
    const answer = await fetch("/api/slack", { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
    acknowledged = answer.ok && (await answer.json()).acknowledged;
  } catch (error) {
    console.warn("the press could not be sent", error);
  }
  node.disabled = false;
  if (!acknowledged) warning.textContent = "⚠ The app did not respond. Try again.";
}
