"""The page of `boxless serve`: a form for each use of a student, and the script behind it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

TITLES = {
    "match": "Which text fits? One a line",
    "point": "Where is a phrase of a caption?",
    "answer": "Answer a question",
    "judge": "Is a statement true?",
    "search": "Find pictures of the folder for a text",
}
"""Action -> what it is called on the page."""

NEEDED = {
    "answer": "a student taught vqa",
    "judge": "a student taught nlvr or snli_ve",
    "search": "boxless serve --pictures FOLDER",
}
"""What an action needs that not every student and server has."""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Boxless: {name}</title>
<meta name="viewport" content="width=device-width">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }}
label {{ display: block; margin: .8rem 0; }}
textarea, input[type=text], select {{ width: 100%; font: inherit; box-sizing: border-box; }}
label[hidden] {{ display: none; }}
img {{ max-width: 100%; }}
#preview {{ display: block; max-height: 12rem; margin: .4rem 0; }}
#preview[hidden] {{ display: none; }}
.missing {{ color: #555; font-size: .85rem; }}
#error {{ color: #b00020; }}
</style></head><body>
<h1>Boxless</h1><p>Student: <code>{name}</code></p>
<form id="form">
<label>What to do <select id="action">{options}</select></label>{missing}
<label id="picture-field">Picture <input id="picture" type="file" accept="image/*">
<img id="preview" alt="the picture that is asked about" hidden></label>
<label>Text <textarea id="text" rows="3"></textarea></label>
<label id="phrase-field">Phrase of the text <input id="phrase" type="text"></label>
<button id="ask">Ask</button>
</form>
<p id="error" role="alert"></p><div id="result" aria-live="polite"></div>
<script>
const at = id => document.getElementById(id);
const base64 = file => new Promise((done, fail) => {{
  const reader = new FileReader();
  reader.onload = () => done(reader.result.split(",")[1]);
  reader.onerror = fail;
  reader.readAsDataURL(file);
}});
const show = found => {{
  const list = document.createElement("ol");
  for (const row of found.rows) {{
    const item = document.createElement("li");
    item.textContent = `${{(100 * row.score).toFixed(1)}} %  ${{row.text}}`;
    if (row.picture) {{ item.append(document.createElement("br"), picture(row.picture)); }}
    list.append(item);
  }}
  at("result").replaceChildren(list);
  if (found.note) {{
    const note = document.createElement("p");
    note.textContent = found.note;
    at("result").append(note);
  }}
  if (found.picture) at("result").append(picture(found.picture));
}};
const picture = uri => {{
  const image = document.createElement("img");
  image.src = uri; image.alt = "";
  return image;
}};
const fit = () => {{
  at("picture-field").hidden = at("action").value === "search";
  at("phrase-field").hidden = at("action").value !== "point";
}};
at("action").addEventListener("change", fit);
at("picture").addEventListener("change", () => {{
  const file = at("picture").files[0];
  URL.revokeObjectURL(at("preview").src);
  at("preview").hidden = !file;
  if (file) at("preview").src = URL.createObjectURL(file);
}});
fit();
const ask = async () => {{
  const file = at("picture").files[0];
  const asked = {{ action: at("action").value, text: at("text").value, phrase: at("phrase").value,
    picture: file ? await base64(file) : null }};
  const reply = await fetch("ask", {{ method: "POST", body: JSON.stringify(asked),
    headers: {{ "Content-Type": "application/json" }} }});
  return reply.json();
}};
at("form").addEventListener("submit", async event => {{
  event.preventDefault();
  at("error").textContent = ""; at("result").textContent = "..."; at("ask").disabled = true;
  const found = await ask().catch(() => ({{ error: "The server does not answer." }}));
  at("result").textContent = ""; at("ask").disabled = false;
  if (found.error) at("error").textContent = found.error; else show(found);
}});
</script></body></html>
"""


def page(name: str, actions: Sequence[str]) -> str:
    """The page of a student that can do some actions."""
    options = "".join(
        f'<option value="{action}">{escape(TITLES[action])}</option>' for action in actions
    )
    missing = "; ".join(
        f"{escape(TITLES[action])} (needs {escape(needed)})"
        for action, needed in NEEDED.items()
        if action not in actions
    )
    return PAGE.format(
        name=escape(name),
        options=options,
        missing=f'\n<p class="missing">Not offered here: {missing}.</p>' if missing else "",
    )
