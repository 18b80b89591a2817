"""tokenizer.model, for models that have no tokenizer.json: the SentencePiece library, and around it what transformers' LlamaTokenizer adds."""

import os
import re
from types import SimpleNamespace

from chat_template import read_json, special_tokens
from child import fail, fail_without


class SentencePieces:
    """encode_batch() as the package tokenizers has it."""

    def __init__(self, path):
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            fail_without("sentencepiece", error)
        try:
            self.model = SentencePieceProcessor(model_file=path)
        except Exception as error:
            fail(65, f"{path} is not a model that the package sentencepiece can read ({error}); restore the model's original file")
        folder = os.path.dirname(path)
        config = read_json(folder, "tokenizer_config.json")
        self.added = self.read_added(folder, config)
        named = special_tokens(folder)
        self.first = [self.id_of(named.get("bos_token"), self.model.bos_id())] if config.get("add_bos_token", True) else []
        self.last = [self.id_of(named.get("eos_token"), self.model.eos_id())] if config.get("add_eos_token", False) else []
        # Before `legacy = false` each piece of text between special tokens began with a space.
        self.spaces = config.get("legacy") is not False
        longest_first = sorted(self.added, key=len, reverse=True)
        self.pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if self.added else None

    def read_added(self, folder, config):
        """Texts that are one token wherever they stand."""
        added = {}
        for number in range(self.model.get_piece_size()):
            if self.model.is_control(number):
                added[self.model.id_to_piece(number)] = number
        try:
            for text, number in read_json(folder, "added_tokens.json").items():
                added[text] = int(number)
            for number, token in config.get("added_tokens_decoder", {}).items():
                added[token["content"]] = int(number)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            fail(65, f"{folder} lists added tokens in a way that is not read ({error!r}); restore the model's original files")
        return {text: number for text, number in added.items() if text}

    def id_of(self, text, otherwise):
        return self.added.get(text, otherwise)

    def ids_of(self, text):
        ids = []
        for place, piece in enumerate(self.pattern.split(text) if self.pattern else [text]):
            if place % 2:
                ids.append(self.added[piece])
            elif piece and (self.spaces or place == 0):
                ids += self.model.encode(piece)
            elif piece:
                ids += self.without_space(piece)
        return ids

    def without_space(self, piece):
        """Behind a piece that is never joined with others."""
        mark = self.model.id_to_piece(self.model.unk_id())
        ahead = self.model.encode(mark)
        return self.model.encode(mark + piece)[len(ahead):]

    def encode_batch(self, texts, add_special_tokens):
        first, last = (self.first, self.last) if add_special_tokens else ([], [])
        return [SimpleNamespace(ids=[i for i in first if i >= 0] + self.ids_of(text) + [i for i in last if i >= 0]) for text in texts]
