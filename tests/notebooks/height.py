"""How much of a chapter's page on the site is code that is not folded, estimated from the executed notebook.

    python tests/notebooks/height.py        of all chapters

Exercises and the chapter's very subject (tags "exercise", "subject") count as text, like what is printed.
"""

import base64
import re
import textwrap

import nbformat
from folder import FOLDER, NAMES

WIDTH, LETTERS = 688, 88  # pixels and characters of a line of text
LINE, CODE_LINE, SPACE, FRAME = 25.6, 19, 16, 37  # pixels; FRAME: what is around code, SPACE: below a paragraph


def code_height(source):
    return FRAME + CODE_LINE * len(source.rstrip().splitlines())


def text_height(text):
    """Return the height of Markdown without code."""
    text = re.sub(r"<details>.*?</details>", "Answer\n\n", text, flags=re.DOTALL)
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)  # of a link only its words
    text = re.sub(r"(?<!\$)\$([^$]+)\$", lambda formula: "x" * (len(formula[1]) // 3), text)
    height = 0
    for paragraph in filter(str.strip, text.split("\n\n")):
        if paragraph.lstrip().startswith("#"):
            height += 65
        elif paragraph.lstrip().startswith("$$"):
            height += 60
        elif paragraph.lstrip().startswith("|"):
            height += SPACE + 40 * (paragraph.count("\n") + 1)
        else:
            items = re.split(r"\n(?=[-*] |\d+\. )", paragraph)
            height += SPACE + LINE * sum(len(textwrap.wrap(item, LETTERS)) for item in items)
    return height


def output_height(output):
    """Return the heights of code and of everything else in an output."""
    data = output.get("data", {})
    if output.output_type == "stream":
        return 0, code_height(output.text)
    if "text/html" in data:
        sizes = re.findall(r'<img width="(\d+)" height="(\d+)"', data["text/html"].split("<script>")[0])
    elif "text/markdown" in data:
        return markdown_height(data["text/markdown"])
    elif "image/png" in data:
        header = base64.b64decode(data["image/png"][:32])
        sizes = [(int.from_bytes(header[16:20]), int.from_bytes(header[20:24]))]
    else:
        return 0, code_height(data.get("text/plain", ""))
    return 0, sum(SPACE + int(h) * min(1, WIDTH / int(w)) for w, h in sizes)


def markdown_height(text):
    fences = r"^```python\n(.*?)^```"
    code = sum(code_height(block) for block in re.findall(fences, text, re.DOTALL | re.MULTILINE))
    return code, text_height(re.sub(fences, "", text, flags=re.DOTALL | re.MULTILINE))


def is_plumbing(cell):
    """Return whether a cell's code counts: it is visible, and not what the chapter is about."""
    return not {"subject", "exercise"} & {*cell.metadata.get("tags", [])} and not is_folded(cell)


def is_folded(cell):
    return cell.metadata.get("jupyter", {}).get("source_hidden", False)


def code_share(name):
    """Return the share of a chapter's height that visible code and listings take."""
    code = text = 0
    for cell in nbformat.read(FOLDER / f"{name}.ipynb", 4).cells:
        if cell.cell_type == "markdown":
            parts = [(0, text_height(cell.source))]
        else:
            own = 0 if not cell.source or is_folded(cell) else code_height(cell.source)
            parts = [(own, 0) if is_plumbing(cell) else (0, own), *map(output_height, cell.outputs)]
        code += sum(part[0] for part in parts)
        text += sum(part[1] for part in parts)
    return code / (code + text)


if __name__ == "__main__":
    for name in NAMES:
        print(f"{code_share(name):.0%}  {name}")
