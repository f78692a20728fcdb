import hashlib
import re
import subprocess
import sys

from recipes.corpus.python_docs import DOCUMENT_CHARACTERS, docstrings, paragraphs, python_documents


def test_markup_code_and_signatures_are_removed():
    docstring = """spawn(command, *args) -> Process

    Start the ``command`` as a *child* process and return the :class:`Process` that runs it.

    :param command: the program to run, with its full path if it is not on the PATH.

    - An item of a list is kept when it reads as a sentence of its own.

    >>> spawn("ls")
    <Process 17>

    Example of a literal block that has to vanish::

        process = spawn("ls", "-l") and then wait for it to end

        which goes on after a blank line in the very same block of text

    Underlined headings of a page
    =============================

    statement ::= "spawn" ("(" arguments ")")? | expression
    """
    assert paragraphs(docstring) == [
        "Start the command as a child process and return the Process that runs it.",
        "the program to run, with its full path if it is not on the PATH.",
        "An item of a list is kept when it reads as a sentence of its own.",
        "Example of a literal block that has to vanish:",
        "Underlined headings of a page",
    ]


def test_docstrings_are_found_wherever_they_are_defined_without_running_anything():
    source = '''
"""Module."""
raise SystemExit("this module must not run")
try:
    class A:
        """Class."""
        def f(self):
            """Method."""
            def inner():
                """Inner."""
except ImportError:
    async def g():
        """Fallback."""
def h():
    "no docstring" + "but an expression"
'''
    assert list(docstrings(source)) == ["Module.", "Class.", "Method.", "Inner.", "Fallback."]


def test_the_documents_are_megabytes_of_distinct_prose():
    documents = python_documents()
    lines = [line for document in documents for line in document.split("\n")]
    assert sum(map(len, documents)) > 1_000_000
    assert len(set(lines)) == len(lines)
    assert max(len(d) - len(d.split("\n")[-1]) for d in documents) <= DOCUMENT_CHARACTERS * 2
    letters = sum(len(re.findall(r"[^\W\d_]| ", document)) for document in documents)
    assert letters / sum(map(len, documents)) > 0.92
    assert not any(">>>" in line or "::=" in line for line in lines)


def test_another_process_finds_the_same_documents():
    code = "from recipes.corpus.python_docs import *; import hashlib, sys;" + (
        "print(hashlib.sha256('\\0'.join(python_documents()).encode()).hexdigest(),"
        "'torch' in sys.modules)"
    )
    digest = hashlib.sha256("\0".join(python_documents()).encode()).hexdigest()
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.split() == [digest, "False"]
