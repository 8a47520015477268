"""A transformers model run one block at a time, with the hidden states on disk: for models larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .inputs import Stop
from .model import HfModel, Weights, checkpoint_names, drop_pooler, import_hf, is_pooler, skeleton, to_torch
from .sensitivity import matrices


class NotInBlocks(Exception):
    """The model does not pass hidden states from block to block as this scheme needs. The message says where."""


@dataclass(frozen=True)
class _Call:
    """What a block is called with besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Blocks:
    """The blocks of a model whose weights are loaded when they are needed.

    head: what makes logits of the last hidden states is needed, too. Raises NotInBlocks.
    """

    def __init__(self, model: HfModel, weights: Weights, device: str, head: bool = False) -> None:
        self._torch, _ = import_hf()
        self._weights, self._device = weights, device
        self.model = skeleton(model)
        for part in self.model.modules():
            for name, buffer in part.named_buffers(recurse=False):
                setattr(part, name, buffer.to(device))
        self.prefix, self._blocks = _find_blocks(self._torch, self.model, model.config)
        shapes = weights.shapes()
        self.names = checkpoint_names(self.model, shapes)
        poolers = [name for name, _ in self.model.named_parameters() if is_pooler(name)]
        if any(name not in self.names for name in poolers):
            drop_pooler(self.model)
        output = self.model.get_output_embeddings()
        self._head = {
            f"{place}.{name}"
            for place, module in self.model.named_modules()
            if module is output
            for name, _ in module.named_parameters()
        }
        needed = [name for name, _ in self.model.named_parameters() if name not in self._head]
        missing = [name for name in (*needed, *(sorted(self._head) if head else ())) if name not in self.names]
        if missing:
            raise NotInBlocks(f"the checkpoint has no tensor {missing[0]!r}")
        self._calls: dict[int, list[_Call]] = {}  # by the number of windows of a batch
        self._shell: Callable[[Any], Any] | None = None  # how a block wraps what it returns
        self._other = self._torch.empty(0, device=device)  # stands for all else that blocks return

    def __len__(self) -> int:
        return len(self._blocks)

    def block(self, index: int) -> Any:
        return self._blocks[index]

    def nbytes(self, index: int | None) -> int:
        """Bytes in the checkpoint of the weights of a block, or of what is in no block."""
        return sum(self._weights.nbytes(self.names[name]) for name, _ in self._parameters(index))

    def load(self, index: int | None) -> None:
        """Load the weights of a block, or those that are in no block."""
        state = {}
        for name, _ in self._parameters(index):
            state[name] = self._weights.tensor(self.names[name]).to(self._device)
        self.model.load_state_dict(state, strict=False, assign=True)

    def unload(self, index: int | None) -> None:
        """Give the memory of these weights back."""
        state = {name: parameter.to("meta") for name, parameter in self._parameters(index)}
        self.model.load_state_dict(state, strict=False, assign=True)

    def load_head(self) -> None:
        """Load what makes logits of the last hidden states, if anything does: `load(None)` leaves it out."""
        embeddings = self.model.get_input_embeddings()
        places = [name for name, module in self.model.named_modules() if module is embeddings]
        tied = self.names.get(f"{places[0]}.weight")
        for name in sorted(self._head):
            if self.names[name] == tied:
                self.model.get_output_embeddings().weight = embeddings.weight
            else:
                tensor = self._weights.tensor(self.names[name]).to(self._device)
                self.model.load_state_dict({name: tensor}, strict=False, assign=True)

    def matrices(self, index: int | None) -> list[tuple[str, str, Any]]:
        """As `sensitivity.matrices`: of a block, or what is in no block and not of the head alone. None of poolers."""
        found = [item for item in self._parameters(index) if not is_pooler(item[0])]
        return matrices(found, self.names)

    def head_matrices(self) -> list[tuple[str, str, Any]]:
        """Those of the head alone. After `load_head`."""
        return matrices([item for item in self.model.named_parameters() if item[0] in self._head], self.names)

    def first(self, batches: Sequence[NDArray[np.int64]], every: bool = True) -> Iterator[NDArray[np.float32]]:
        """The hidden states that block 0 is given, batch by batch, float32 [windows, length, width].

        Needs the weights outside the blocks, and those of block 0. every: else only as many batches as are needed to
        learn what the blocks are called with. Raises NotInBlocks.
        """
        shell = self._shell = self._shell or self._learn_shell(batches[0][:1])
        for batch in batches:
            if not every and len(batch) in self._calls:
                continue
            seen: list[Any] = []
            calls: list[_Call] = []

            def record(hidden: Any, call: _Call, seen: list[Any] = seen, calls: list[_Call] = calls) -> Any:
                if seen and hidden is not seen[0]:
                    raise NotInBlocks(f"something happens between blocks {len(calls) - 1} and {len(calls)}")
                if _holds(call, self._other):
                    raise NotInBlocks("blocks are given something that others return besides the hidden states")
                seen.append(hidden)
                calls.append(call)
                if len(calls) == len(self):
                    raise Stop
                return shell(hidden)

            self._forward(batch, [record] * len(self))
            if len(calls) != len(self):
                raise NotInBlocks(f"{len(calls)} of {len(self)} blocks are called")
            if not _equal(self._torch, self._calls.setdefault(len(batch), calls), calls):
                raise NotInBlocks("blocks are given something that depends on the text besides the hidden states")
            yield seen[0].cpu().numpy()

    def run(self, index: int, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """The hidden states after a block whose weights are loaded."""
        call = self._calls[len(hidden)][index]
        before = to_torch(hidden).to(self._device)
        result, _ = self._open(self._blocks[index](before, *call.args, **call.kwargs))
        if result.shape != before.shape:
            raise NotInBlocks(f"block {index} changes the shape of the hidden states")
        return np.asarray(result.cpu().numpy(), np.float32)

    def finish(self, ids: NDArray[np.int64], hidden: NDArray[np.float32]) -> Any:
        """What comes after the last block (and once more what comes before the first), given its hidden states.

        ids: int64 [windows, length]. Returns the model's output; None where a hook stopped it. After `first`.
        """
        shell = self._shell
        assert shell is not None
        last = to_torch(hidden).to(self._device)
        calls: list[_Call] = []

        def pass_on(hidden: Any, call: _Call) -> Any:
            calls.append(call)
            return shell(last if len(calls) == len(self) else hidden)

        output = self._forward(ids, [pass_on] * len(self))
        if len(calls) != len(self):
            raise NotInBlocks(f"{len(calls)} calls of {len(self)} blocks")
        return output

    def _parameters(self, index: int | None) -> list[tuple[str, Any]]:
        """Names and tensors that the checkpoint has and the forward pass needs, of a block or outside all blocks."""
        prefix = self.prefix if index is None else f"{self.prefix}{index}."
        buffers = [(name, buffer) for name, buffer in self.model.named_buffers() if name in self.names]
        return [
            (name, tensor)
            for name, tensor in [*self.model.named_parameters(), *buffers]
            if name.startswith(prefix) == (index is not None) and name not in self._head
        ]

    def _learn_shell(self, ids: NDArray[np.int64]) -> Callable[[Any], Any]:
        """Run block 0 to see what it returns, hidden states or a tuple with them: what makes such a thing of them."""
        returned: list[Any] = []
        run = self._blocks[0].forward

        def observe(hidden: Any, call: _Call) -> Any:
            returned.append(run(hidden, *call.args, **call.kwargs))
            raise Stop

        self._forward(ids, [observe] * len(self))
        if not returned:
            raise NotInBlocks("block 0 is not called")
        return self._open(returned[0])[1]

    def _open(self, result: Any) -> tuple[Any, Callable[[Any], Any]]:
        """The hidden states in what a block returned, and what makes such a thing of hidden states."""
        if isinstance(result, self._torch.Tensor):
            return result, lambda hidden: hidden
        if isinstance(result, tuple) and result and isinstance(result[0], self._torch.Tensor):
            rest = tuple(None if item is None else self._other for item in result[1:])
            return result[0], lambda hidden: (hidden, *rest)
        raise NotInBlocks(f"blocks return a {type(result).__name__}")

    def _forward(self, ids: NDArray[np.int64], stand_ins: Sequence[Callable[[Any, _Call], Any]]) -> Any:
        """Run the model with `stand_ins` in the place of the blocks."""
        with _replaced(self._blocks, stand_ins):
            try:
                return self.model(input_ids=self._torch.from_numpy(ids).to(self._device))
            except Stop:
                return None


@contextmanager
def _replaced(blocks: Any, stand_ins: Sequence[Callable[[Any, _Call], Any]]) -> Iterator[None]:
    def forward(stand_in: Callable[[Any, _Call], Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if args:
                return stand_in(args[0], _Call(args[1:], kwargs))
            if "hidden_states" not in kwargs:
                raise NotInBlocks("blocks are called without hidden states")
            rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            return stand_in(kwargs["hidden_states"], _Call((), rest))

        return call

    for block, stand_in in zip(blocks, stand_ins, strict=True):
        block.forward = forward(stand_in)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _find_blocks(torch: Any, model: Any, config: Any) -> tuple[str, Any]:
    """The name, with a dot, of the one list of modules that is as long as the config says."""
    count = getattr(config.get_text_config(), "num_hidden_layers", None)
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    ]
    # A list inside a block (experts, say) may be as long by chance: the outermost is meant.
    outer = [item for item in lists if not any(item[0].startswith(other + ".") for other, _ in lists)]
    if len(outer) != 1:
        raise NotInBlocks(f"{len(outer)} lists of {count} modules")
    return outer[0][0] + ".", outer[0][1]


def _holds(value: Any, what: Any) -> bool:
    if isinstance(value, _Call):
        return _holds(value.args, what) or _holds(value.kwargs, what)
    if isinstance(value, dict):
        return _holds(list(value.values()), what)
    return value is what or (isinstance(value, list | tuple) and any(_holds(item, what) for item in value))


def _equal(torch: Any, a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.shape == b.shape and bool(torch.equal(a, b))
    if isinstance(a, _Call):
        return _equal(torch, a.args, b.args) and _equal(torch, a.kwargs, b.kwargs)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_equal(torch, a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(_equal(torch, *pair) for pair in zip(a, b, strict=True))
    return a is b or bool(a == b)
