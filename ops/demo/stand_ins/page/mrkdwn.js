// Slack's mrkdwn → nodes. https://docs.slack.dev/messaging/formatting-message-text

import { el, link } from "./dom.js";

const EMOJI = {
  rotating_light: "🚨", fire: "🔥", red_circle: "🔴", large_orange_circle: "🟠", large_yellow_circle: "🟡",
  large_green_circle: "🟢", white_check_mark: "✅", heavy_check_mark: "✔️", warning: "⚠️", x: "❌", bell: "🔔",
  no_bell: "🔕", book: "📖", bar_chart: "📊", chart_with_upwards_trend: "📈", key: "🔑", lock: "🔒", hourglass: "⌛",
  information_source: "ℹ️", link: "🔗", mute: "🔇", eyes: "👀", arrow_right: "➡️", large_blue_circle: "🔵",
};
const TOKEN = new RegExp(
  [
    /`(?<code>[^`\n]+)`/,
    /<(?<control>[^<>\n]+)>/,
    /:(?<emoji>[a-z0-9_+-]+):/,
    /(?<![\p{L}\p{N}*])\*(?<bold>[^\s*](?:[^*\n]*[^\s*])?)\*(?![\p{L}\p{N}*])/u,
    /(?<![\p{L}\p{N}_])_(?<italic>[^\s_](?:[^_\n]*[^\s_])?)_(?![\p{L}\p{N}_])/u,
    /(?<![\p{L}\p{N}~])~(?<strike>[^\s~](?:[^~\n]*[^\s~])?)~(?![\p{L}\p{N}~])/u,
    /(?<newline>\n)/,
  ].map((part) => part.source).join("|"),
  "gu",
);

// Coloured discs, drawn by us: Slack brings its own emoji, and a machine without an emoji font would show boxes.
const DISCS = { "🔴": "red", "🟠": "orange", "🟡": "yellow", "🟢": "green", "🔵": "blue" };

export function glyphs(text) {
  const parts = text.split(/([🔴🟠🟡🟢🔵])/u).filter(Boolean);
  return parts.map((part) => (DISCS[part] ? el("span", { class: `disc ${DISCS[part]}`, role: "img", "aria-label": DISCS[part] }) : part));
}

// Slack escapes exactly these three, and so do we undo exactly these.
export function unescape(text) {
  return text.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");
}

const named = (text) => text.replace(/:([a-z0-9_+-]+):/g, (all, name) => (Object.hasOwn(EMOJI, name) ? EMOJI[name] : all));

// A `plain_text` object as a string; `emoji: false` says that `:lock:` is text.
export function plain({ text, emoji }) {
  return emoji === false ? unescape(text) : named(unescape(text));
}

export function mrkdwn(text) {
  const fragment = document.createDocumentFragment();
  // Every second part is the content of a fence: nothing in it is mark-up.
  for (const [i, part] of text.split(/```\n?([\s\S]+?)```\n?/).entries())
    if (i % 2) fragment.append(el("pre", {}, el("code", {}, unescape(part))));
    else fragment.append(...lines(part));
  return fragment;
}

// Lines that begin with ">" are quotes; those that follow one another make one.
function lines(text) {
  const nodes = [];
  let quoted = null;
  let pending = [];
  const flush = () => {
    if (pending.length) nodes.push(...inline(pending.join("\n")));
    pending = [];
  };
  for (const line of text === "" ? [] : text.split("\n")) {
    const quote = /^(?:&gt;|>) ?/.exec(line);
    if (!quote) {
      quoted = null;
      pending.push(line);
      continue;
    }
    flush();
    if (quoted) quoted.append(el("br"));
    else nodes.push((quoted = el("blockquote")));
    quoted.append(...inline(line.slice(quote[0].length)));
  }
  flush();
  return nodes;
}

function inline(text) {
  const nodes = [];
  let at = 0;
  for (const match of text.matchAll(TOKEN)) {
    if (match.index > at) nodes.push(...glyphs(unescape(text.slice(at, match.index))));
    nodes.push(...token(match));
    at = match.index + match[0].length;
  }
  if (at < text.length) nodes.push(...glyphs(unescape(text.slice(at))));
  return nodes;
}

function token({ 0: all, groups }) {
  if (groups.code != null) return [el("code", {}, unescape(groups.code))];
  if (groups.control != null) return [control(groups.control)];
  if (groups.emoji != null) return glyphs(named(all));
  if (groups.bold != null) return [el("b", {}, ...inline(groups.bold))];
  if (groups.italic != null) return [el("i", {}, ...inline(groups.italic))];
  if (groups.strike != null) return [el("s", {}, ...inline(groups.strike))];
  return [el("br")];
}

// `<…>`: a mention, a date or a link, each perhaps with `|label`.
function control(content) {
  const bar = content.indexOf("|");
  const target = bar < 0 ? content : content.slice(0, bar);
  const label = bar < 0 ? null : unescape(content.slice(bar + 1));
  if (target.startsWith("!date^")) return el("span", { title: label ?? "" }, formatDate(...target.split("^").slice(1)));
  if (target.startsWith("!subteam^")) return mention(label ?? "@group");
  if (target.startsWith("!")) return mention(`@${target.slice(1)}`);
  if (target.startsWith("@")) return mention(`@${label ?? target.slice(1)}`);
  if (target.startsWith("#")) return mention(`#${label ?? target.slice(1)}`);
  return link(unescape(target), label ?? unescape(target));
}

const mention = (text) => el("span", { class: "mention" }, text);

// A date in the zone of the browser, as Slack shows it: https://docs.slack.dev/messaging/formatting-message-text#date-formatting
function formatDate(seconds, pattern) {
  const moment = new Date(Number(seconds) * 1000);
  const day = moment.toLocaleDateString("en", { month: "short", day: "numeric", year: "numeric" });
  const time = moment.toLocaleTimeString("en", { hour: "2-digit", minute: "2-digit", hour12: false });
  return pattern.replace("{date_short_pretty}", day).replace("{time}", time);
}
