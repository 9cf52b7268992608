"""Reads a file as systemd's `EnvironmentFile=` does, by what its manual page says and its behaviour shows.

A line ends at a newline or a carriage return; lines that begin with # or ; are comments. Quotes open at the
start of a value, or right behind other quotes. Within double quotes a backslash stands for the quote, dollar,
backtick or backslash behind it, a newline behind it vanishes with it, and before anything else it is kept.
Outside of quotes it stands for whatever is behind it. Within single quotes nothing is special.
"""

SPACE, END = " \t", "\n\r"


class Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def assignments(self) -> list[tuple[str, str]]:
        found = []
        while char := self.peek():
            if char in SPACE + END:
                self.at += 1
            elif char in "#;":
                self.until(END)
            else:
                name = self.until("=" + END)
                if self.peek() != "=":
                    found.append((name, "<no assignment>"))
                    continue
                self.at += 1
                found.append((name.rstrip(SPACE), self.value()))
        return found

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def take(self) -> str:
        char = self.peek()
        self.at += 1
        return char

    def until(self, stops: str) -> str:
        start = self.at
        while (char := self.peek()) and char not in stops:
            self.at += 1
        return self.text[start : self.at]

    def value(self) -> str:
        value = ""
        while (char := self.peek()) and char not in END:
            if char == '"':
                self.at += 1
                value += self.double_quoted()
            elif char == "'":
                self.at += 1
                value += self.until("'")
                self.at += 1
            elif char in SPACE:
                self.at += 1
            else:
                return value + self.bare()
        return value

    def double_quoted(self) -> str:
        value = ""
        while (char := self.take()) and char != '"':
            if char == "\\":
                after = self.take()
                char = {"\n": ""}.get(after, after if after in '"\\`$' else char + after)
            value += char
        return value

    def bare(self) -> str:
        value = ""
        kept = 0
        while (char := self.peek()) and char not in END:
            self.at += 1
            if char == "\\":
                escaped = self.take()
                value += "" if escaped in END else escaped
                kept = len(value)
            else:
                value += char
                kept = kept if char in SPACE else len(value)
        return value[:kept]


def read_environment_file(raw: bytes) -> list[tuple[str, str]]:
    """Return the assignments in their order."""
    return Reader(raw.decode()).assignments()
