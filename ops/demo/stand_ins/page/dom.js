// Builds and updates elements. Text only ever goes in as text nodes: nothing that arrived is parsed as HTML.

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

// The only way to a link: http and https, in a tab of its own; anything else stays text. `content` is text or nodes.
export function link(address, content, attributes = {}) {
  const children = [content].flat();
  let url;
  try {
    url = new URL(address);
  } catch {
    return el("span", {}, ...children);
  }
  if (url.protocol !== "http:" && url.protocol !== "https:") return el("span", {}, ...children);
  return el("a", { ...attributes, href: url.href, target: "_blank", rel: "noopener noreferrer" }, ...children);
}

export function time(seconds) {
  const date = new Date(seconds * 1000);
  const shown = date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
  return el("time", { datetime: date.toISOString(), title: date.toLocaleString() }, shown);
}

// Makes the children of `parent` those of `items`, in their order, and leaves every node that is still right alone:
// scroll position, focus and opened mails survive. `create(item)` gives a node; its `update(item)`, if any, follows changes.
export function reconcile(parent, items, key, create) {
  const present = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let next = parent.firstElementChild;
  for (const item of items) {
    const id = String(key(item));
    let node = present.get(id);
    present.delete(id);
    if (!node) {
      node = create(item);
      node.dataset.key = id;
      // What arrives while the page is open lights up; what had been there before does not.
      node.classList.toggle("arrived", document.body.classList.contains("settled"));
    }
    node.update?.(item);
    if (node === next) next = next.nextElementSibling;
    else parent.insertBefore(node, next);
  }
  for (const gone of present.values()) gone.remove();
}
