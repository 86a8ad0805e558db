"""How a prompt of the demo is written: as a chat, where the model has a template for one."""

from collections.abc import Sequence

from pagetwin.engine.errors import RequestError
from pagetwin.engine.tokenizer import Tokenizer

QUESTION = "What should be done first?"
_PASSAGE = "@@passage@@"
_LONGEST_HEAD = 96
_SHORTEST_PASSAGE = 8


class PromptWriter:
    """Instruction, passage and question as token ids; only the passage is cut to a length."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, instruction: str, passage: str, num_tokens: int) -> tuple[int, ...]:
        """About `num_tokens` ids. Prompts of one instruction start with the same ones."""
        before, _, after = self._frame(instruction).partition(_PASSAGE)
        head, tail = self._encode(before)[:_LONGEST_HEAD], self._encode(after)
        room = max(_SHORTEST_PASSAGE, num_tokens - len(head) - len(tail))
        return (*head, *self._encode(passage)[:room], *tail)

    def _frame(self, instruction: str) -> str:
        user = f"{_PASSAGE}\n\n{QUESTION}"
        messages = [
            {"role": "system", "content": instruction},
            {"role": "user", "content": user},
        ]
        try:
            return self._tokenizer.apply_chat_template(messages)
        except RequestError:  # no template, or none for a system message
            return f"{instruction}\n\n{user}\n\nAnswer:"

    def _encode(self, text: str) -> Sequence[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)
