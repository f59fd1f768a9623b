// The bar that breaks and heals KMS, and says what is broken now.

const now = document.getElementById("kms-now");
const problem = document.getElementById("kms-problem");
const choice = document.getElementById("kms-fault");
const heal = document.getElementById("kms-heal");
const providers = document.getElementById("provider-faults");
const providersText = document.getElementById("provider-faults-text");
const names = Object.fromEntries([...choice.options].map((option) => [option.value, option.text]));

const SILENCE = 6000; // ms without an answer, twice as long as until the page asks again

async function ask(method, path, body) {
  try {
    const answer = await fetch(path, {
      method,
      signal: AbortSignal.timeout(SILENCE),
      body: body && JSON.stringify(body),
      headers: body ? { "Content-Type": "application/json" } : {},
    });
    const content = answer.status === 204 ? {} : await answer.json();
    return answer.ok ? content : { error: content.error ?? `the answer was ${answer.status}` };
  } catch {
    return { error: "the stand-ins do not answer; is the demo still running?", isSilent: true };
  }
}

// Returns whether the stand-ins answer.
export async function showKms() {
  const state = await ask("GET", "/api/kms");
  const broken = state.error ? "unknown" : state.broken;
  set(now, broken === "unknown" ? "KMS unknown" : broken ? `KMS is broken: ${names[broken] ?? "several faults"}` : "KMS works");
  now.className = `kms-now ${broken === "unknown" ? "unknown" : broken ? "broken" : "works"}`;
  set(problem, state.error ?? "");
  return !state.isSilent;
}

export function showProviderFaults(faults) {
  providers.hidden = faults.length === 0;
  const left = (fault) => (fault.count ? `, ${fault.count} left` : "");
  set(providersText, `Broken: ${faults.map((fault) => `${fault.provider} (${fault.error ?? fault.kind}${left(fault)})`).join("; ")}`);
}

// A live region speaks whenever its text is set: only set what is new.
function set(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

async function press(method, path, body) {
  const answer = await ask(method, path, body);
  await showKms();
  if (answer.error) set(problem, answer.error);
}

document.getElementById("kms-break").addEventListener("click", () => press("POST", "/api/kms/break", { fault: choice.value }));
heal.addEventListener("click", () => press("POST", "/api/kms/heal"));
document.getElementById("providers-heal").addEventListener("click", () => press("DELETE", "/api/faults"));
