// Keeps the page live: asks for it again every second, and exchanges what has changed. Opened parts stay open.

const SECONDS = 1;
const TIMEOUT = 6000; // ms
const live = document.getElementById("live");
let shown = null;

async function refresh() {
  try {
    const answer = await fetch("/", { cache: "no-cache", signal: AbortSignal.timeout(TIMEOUT) });
    if (!answer.ok) throw new Error(`the answer was ${answer.status}`);
    const text = await answer.text();
    if (text !== shown) update(new DOMParser().parseFromString(text, "text/html"));
    shown = text;
    setLive(true);
  } catch (error) {
    console.warn("the page could not be read", error);
    setLive(false);
  }
  setTimeout(refresh, SECONDS * 1000);
}

function setLive(on) {
  const text = on ? "Live" : "Reconnecting";
  if (live.textContent !== text) live.textContent = text;
  live.classList.toggle("on", on);
}

function update(fresh) {
  document.title = fresh.title;
  for (const button of fresh.querySelectorAll("[data-action]")) Object.assign(button, { role: "button", tabIndex: 0 });
  for (const id of ["bar", "slack", "mailbox", "pagerduty"]) replaceChildren(document.getElementById(id), fresh.getElementById(id));
}

// Children with an id stay where they are the same; lists are gone through, others are exchanged.
function replaceChildren(old, fresh) {
  const before = new Map([...old.children].map((child) => [child.id, child]));
  [...fresh.children].forEach((child, place) => {
    let node = child.id ? before.get(child.id) : null;
    before.delete(child.id);
    if (!node) node = child;
    else if (child.tagName === "OL") replaceChildren(node, child);
    else if (!("keep" in child.dataset) && node.source !== child.outerHTML) {
      child.querySelectorAll("details").forEach((part, n) => (part.open = node.querySelectorAll("details")[n]?.open ?? false));
      node.replaceWith(child);
      node = child;
    }
    node.source ??= child.outerHTML.replaceAll(' open=""', "");
    if (old.children[place] !== node) old.insertBefore(node, old.children[place] ?? null);
  });
  for (const gone of before.values()) gone.remove();
}

async function call(method, path, body) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal: AbortSignal.timeout(TIMEOUT) });
  const content = answer.status === 204 ? {} : await answer.json();
  if (!answer.ok) throw new Error(content.error ?? `the answer was ${answer.status}`);
  return content;
}

document.addEventListener("click", async ({ target }) => {
  const button = target.closest("[data-call], [data-action]");
  if (!button) return;
  const message = button.closest("[data-ts]");
  const problem = (message ?? document.getElementById("bar")).querySelector(".problem");
  problem.textContent = "";
  try {
    if (button.dataset.call) {
      const [method, path] = button.dataset.call.split(" ");
      await call(method, path, path.endsWith("break") ? { fault: document.getElementById("kms-fault").value } : undefined);
    } else {
      const { channel, ts } = message.dataset;
      const user = document.getElementById("presser").value;
      const { acknowledged } = await call("POST", "/api/slack", { action: "press", channel, ts, action_id: button.dataset.action, user });
      if (!acknowledged) throw new Error("The app did not respond. Try again.");
    }
  } catch (error) {
    problem.textContent = error.message;
  }
});

document.addEventListener("keydown", ({ key, target }) => key === "Enter" && target.matches("[data-action]") && target.click());

refresh();
