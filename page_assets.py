"""How the page looks, what it suggests to ask, and what its browser does by itself.

Knows CSS and JavaScript, and where a browser keeps things. Refuses to know what a conversation means.

Each conversation has an entry of its own in localStorage, so two tabs never write over each other's; of one
that is open in both, the newest change stays. sessionStorage holds which one a tab shows.
"""

import gradio as gr

EXAMPLES = [
    "Hello! What can you do for me?",
    "What is OpenVINO?",
    "Who are you?",
    "What is Python?",
    "Tell me a fairy tale in one sentence.",
    "Which mistakes do people often make when they write code?",
    "Write a blog post of 100 words about a walk in the rain.",
]

CSS = """
/* What would take the conversation away from under the answer that is being written waits for its end. */
body:has(.stop-button) :is(.side-panel, .conversation button:not([aria-label*="opy"], [class*="copy"])) {
  pointer-events: none; opacity: 0.5;
}
/* However many saved conversations there are, the list stays in view. */
.side-panel { max-height: 80vh; overflow-y: auto !important; flex-wrap: nowrap !important; }
/* On a phone they stand above the chat, which must stay in view. */
@media (max-width: 768px) {
  div.side-panel { max-height: 8rem; }
  .conversation { height: 50vh !important; }
  .conversation .example { padding: var(--spacing-md) var(--spacing-lg) !important; }
  .heading h1 { font-size: var(--text-lg) !important; }
}
/* Gradio now and then takes the end of a stopped answer for an error, and covers the conversation with it. */
.conversation [data-testid="status-tracker"]:has(.clear-status) { display: none !important; }
/* A wide table or formula is scrolled, not broken within words or cut off. */
.conversation table { display: block; overflow-x: auto; border: 0 !important; }
.conversation .katex-display { overflow: auto hidden; }
.conversation :is(td, th) { overflow-wrap: normal; word-break: normal; }
.heading :is(h1, p) { margin: 0 !important; }
:is(.stats, .heading) p { color: var(--body-text-color-subdued) !important; font-size: var(--text-sm); }
/* Each paragraph reads in the direction of its own letters. */
.conversation :is(p, li, h1, h2, h3, h4, td, th, .typed) { unicode-bidi: plaintext; text-align: start; }
.side-panel td * { unicode-bidi: plaintext; }
.conversation pre.typed {
  margin: 0; padding: 0; border: 0; background: none; font: inherit; color: inherit;
  white-space: pre-wrap; overflow-wrap: anywhere;
}
"""
# Gradio's default but for the bold weight: its semi-bold files (600) hold a few letters only.
THEME = gr.themes.Default(
    font=[
        gr.themes.LocalFont("Source Sans Pro", weights=(400, 700)),
        "ui-sans-serif",
        "system-ui",
        "sans-serif",
    ]
).set(  # Gradio's are too light to be read easily: 2.6 to 1 against what lies behind them, for some 4.5
    body_text_color_subdued="*neutral_500",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_400",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_hover_dark="*primary_800",
)

# What runs in the browser, by what it is for.
JS = {
    # The message box lost it when it was locked; who has gone elsewhere since is left there.
    "focus": """() => {
  if (document.activeElement === document.body) document.querySelector(".question-box textarea").focus();
}""",
    "save": """({id, messages}) => {
  const key = "llm-chatbot:" + id, before = localStorage.getItem(key);
  sessionStorage.setItem("llm-chatbot", id);
  if (!messages.length) return void localStorage.removeItem(key);
  if (before && JSON.stringify(JSON.parse(before).messages) === JSON.stringify(messages)) return;
  localStorage.setItem(key, JSON.stringify({messages, changed: Date.now()}));
}""",
    # The newest first; what is damaged is left alone.
    "list": """() => [Object.keys(localStorage).filter(key => key.startsWith("llm-chatbot:")).flatMap(key => {
  try {
    const {messages, changed} = JSON.parse(localStorage.getItem(key));
    return [{id: key.slice(12), title: messages[0].content.slice(0, 60), changed}];
  } catch { return [] }
}).sort((one, other) => other.changed - one.changed)]""",
    # What was typed but not sent when the page had to load itself anew.
    "draft": """typed => [typed || (sessionStorage.getItem("llm-chatbot-draft") ?? "")]""",
    "keep draft": """text => sessionStorage.setItem("llm-chatbot-draft", text ?? "")""",
    "restore": """() => {
  const id = sessionStorage.getItem("llm-chatbot"), kept = localStorage.getItem("llm-chatbot:" + id);
  return [kept ? {id, messages: JSON.parse(kept).messages} : null];
}""",
    "open": """(index, listing) => {
  const id = listing[index].id, kept = localStorage.getItem("llm-chatbot:" + id);
  return [index, kept ? {id, messages: JSON.parse(kept).messages} : null];
}""",
    "pick": """() => new Promise(done => {
  const picker = Object.assign(document.createElement("input"), {type: "file", accept: ".json"});
  picker.onchange = async () => done([{text: await picker.files[0].text()}]);
  picker.oncancel = () => done([null]);
  picker.click();
})""",
    "download": """({name, text}) => {
  const address = URL.createObjectURL(new Blob([text]));
  Object.assign(document.createElement("a"), {href: address, download: name}).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}""",
    # Gradio has copied what the page shows. Only pages of this machine or with https have a clipboard.
    "copy": """async ({text}) => {
  if (navigator.clipboard) return void await navigator.clipboard.writeText(text);
  const area = Object.assign(document.createElement("textarea"), {value: text});
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}""",
    # A question is edited as it was typed, not as the page shows it.
    "edit": """() => document.addEventListener("focusin", ({target}) => {
  if (!target.matches(".edit-textarea") || !target.value.startsWith('<pre class="typed"')) return;
  target.value = new DOMParser().parseFromString(target.value, "text/html").body.textContent;
  target.dispatchEvent(new Event("input"));
})""",
}
