"""Several methods in one training, each writing something different."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Literal

from torch import Tensor

from evenly import distributed
from evenly.errors import UserError
from evenly.method import Info, Method, overrides
from evenly.output import Output
from evenly.probe import Probe
from evenly.targets import ANY


def clash(one: Method, other: Method) -> str | None:
    """What both methods write, so that one would undo the other; None if nothing."""
    both = (one, other)
    if Method in map(type, both):
        return "what joint training does"
    if isinstance(one, type(other)) or isinstance(other, type(one)):
        return "the same, as they are of one kind"
    if all(hasattr(method, "sampler") for method in both):
        return "the order of the samples"
    for what in ("weights", "learning rates"):
        if all(method.info.writes == what for method in both):
            return what
    if all(method.info.writes == "gradients" for method in both) and not any(
        method.info.multiplies for method in both
    ):
        return "gradients"
    if not any(_keeps_loss(method) for method in both):
        return "the loss"
    if all(type(method).repeats is not Method.repeats for method in both):
        return "how often a batch comes"
    return None


def combined(infos: Sequence[Info]) -> Info:
    """The combined facts of several methods.

    Raises:
        ValueError: If they are made for different heads, or one trains a modality alone.
    """
    heads = {info.head for info in infos} - {"concat"}
    if len(heads) > 1:
        raise UserError(
            f"{_listed(infos)} are made for different heads, {' and '.join(sorted(heads))}, and a "
            "model has one. Compose methods of one head."
        )
    if any(info.alone for info in infos):
        raise UserError(
            f"{_listed(infos)}: one of them trains a single modality, so the others have "
            "nothing to do."
        )
    writes = [info.writes for info in infos if info.writes != "nothing"]
    order = ("gradients", "loss", "learning rates", "weights")
    return Info(
        title=" + ".join(info.title for info in infos),
        category=infos[0].category,
        writes=min(writes, key=order.index) if writes else "nothing",
        pretrains=any(info.pretrains for info in infos),
        modalities="; ".join(dict.fromkeys(info.modalities for info in infos)),
        neutral="each of them has settings of its own",
        targets=tuple(kind for kind in ANY if all(kind in info.targets for info in infos)),
        needs=tuple(dict.fromkeys(part for info in infos for part in info.needs)),
        unimodal=_unimodal(infos),
        separate=any(info.separate for info in infos),
        sums=any(info.sums for info in infos),
        needs_probe=any(info.needs_probe for info in infos),
        head=next(iter(heads), "concat"),
        cost="; ".join(dict.fromkeys(info.cost for info in infos)),
        fused=all(info.fused for info in infos),
        partial=any(info.partial for info in infos),
        within_batch=any(info.within_batch for info in infos),
        by_pass=any(info.by_pass for info in infos),
        missing=all(info.missing for info in infos),
        sharded=all(info.sharded for info in infos),
    )


class Composed(Method):
    """Runs several methods at once: `Composed(Relearn(encoders), OGMGE(encoders))`.

    Methods can be combined if they write different things (`Info.writes`): a method that writes
    weights (D&R) or the order of the samples goes with one that writes the loss or gradients. Only
    one may have its own loss; the others see each batch and leave the loss alone. A method that
    only multiplies an encoder's gradients may also follow one that writes them.

    Where the head has layers of their own for unimodal logits, such as 'multi', a method that goes
    by these logits (OGM) needs another one that trains them (MultiLoss); Finetune and UMT do not.

    Attributes:
        metrics: What each did last, such as 'OGM/coefficient/audio'.
        methods: In the order given. Whatever it is, those that pre-train begin an epoch first,
            then those that write weights, so that the others see the weights it starts with.
        sampler: That of the method that writes the order of the samples; there may be none.
    """

    def __init__(self, *methods: Method) -> None:
        """Combines methods of one training.

        Args:
            methods: Two or more, made with the same encoders and the same criterion.

        Raises:
            ValueError: If two of them write the same thing, or they belong to different trainings.
        """
        if len(methods) < 2:
            raise UserError(f"Composed takes at least two methods; found {len(methods)}.")
        for one, other in combinations(methods, 2):
            if what := clash(one, other):
                raise UserError(
                    f"{_name(one)} and {_name(other)} both write {what}, so one would undo what "
                    "the other does. Compose methods that write different things."
                )
            _check_turn(one, other)
            _check_turn(other, one)
            if one.criterion is not other.criterion:
                raise UserError(
                    f"{_name(one)} and {_name(other)} have different criteria. Give both the "
                    "same one."
                )
        self.methods = methods
        self.info = combined([method.info for method in methods])
        encoders = {name: x for method in methods for name, x in method.encoders.items()}
        for method in methods:
            if any(encoders[name] is not x for name, x in method.encoders.items()):
                raise UserError(
                    "the methods have different encoders under the same name. Give "
                    "all the same encoders."
                )
        super().__init__(encoders, criterion=methods[0].criterion)
        self._by_turn = sorted(methods, key=_turn)
        for method in methods:
            if hasattr(method, "sampler"):
                self.sampler = method.sampler
        own = [method for method in methods if not _keeps_loss(method)]
        self._of_loss = own[0] if own else methods[0]
        self._of_backward = next((m for m in methods if overrides(m, "backward")), self._of_loss)

    def __repr__(self) -> str:
        """The methods with their settings."""
        return f"Composed({', '.join(map(repr, self.methods))})"

    @property
    def state(self) -> tuple[str, ...]:  # type: ignore[override]
        """What the methods remember, by method."""
        return tuple(f"{place}.{name}" for place, m in self._places().items() for name in m.state)

    @property
    def repeats(self) -> int:  # type: ignore[override]
        """The passes over each batch, from the method that takes it several times."""
        return max(method.repeats for method in self.methods)

    @property
    def turn(self) -> str | None:  # type: ignore[override]
        """The modality of the next pass, from the method whose passes train one modality."""
        return next((m.turn for m in self.methods if m.turn is not None), None)

    def is_due(self, epoch: int) -> bool:
        """Whether any of the methods does anything in this epoch."""
        return any(method.is_due(epoch) for method in self.methods)

    def before_epoch(self, epoch: int, probe: Probe | None = None) -> None:
        """Has each method begin the epoch; those that change weights come first."""
        for method in self._by_turn:
            method.before_epoch(epoch, probe)
        self._collect()

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """The loss of the method that has its own; the others see the batch."""
        found = {id(method): method.loss(output, target) for method in self.methods}
        loss = found.pop(id(self._of_loss))
        # What only the others' losses reach gets a gradient of zeros, as it does from each alone.
        others = [found[id(m)] for m in self.methods if id(m) in found and overrides(m, "loss")]
        return loss + distributed.idle(others) if others else loss

    def backward(self, loss: Tensor) -> None:
        """The backward pass of the method that has its own."""
        self._of_backward.backward(loss)

    def before_step(self) -> None:
        """Has each method change the gradients; those that only multiply come last."""
        for method in sorted(self.methods, key=lambda method: method.info.multiplies):
            method.before_step()
        self._collect()

    def state_dict(self) -> dict[str, Any]:
        """What the methods remember, by method."""
        return {place: method.state_dict() for place, method in self._places().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned.

        Raises:
            ValueError: If the state belongs to other methods.
        """
        places = self._places()
        if set(state) != set(places):
            raise UserError(
                f"the state is of {' and '.join(state)}, but this is {' and '.join(places)}. "
                "It was saved by another method."
            )
        for place, method in places.items():
            method.load_state_dict(state[place])
        self._collect()

    def _places(self) -> dict[str, Method]:
        """The methods by name, with a number if there are several of one class."""
        names = [_name(method) for method in self.methods]
        return {
            name if names.count(name) == 1 else f"{name} {n}": method
            for n, (name, method) in enumerate(zip(names, self.methods, strict=True))
        }

    def _collect(self) -> None:
        self.metrics = {
            f"{place}/{key}": value
            for place, method in self._places().items()
            for key, value in method.metrics.items()
        }


def _check_turn(one: Method, other: Method) -> None:
    """Raises if one method's passes hold a single modality, and the other may need all."""
    alternates = not isinstance(one, Composed) and type(one).turn is not Method.turn
    if (alternates or one.turn is not None) and not other.info.missing:
        raise UserError(
            f"{_name(one)} trains on one modality at a time, but {_name(other)} does not declare "
            "that a batch may lack a modality. Leave one of them out; or, if a method of your own "
            "needs no other modality, declare Info.missing=True."
        )


def parts(method: Method) -> Sequence[Method]:
    """The parts of a composed method; any other method by itself."""
    return method.methods if isinstance(method, Composed) else (method,)


def _turn(method: Method) -> int:
    """When a method begins an epoch: 0 if it pre-trains, 1 if it writes weights, else 2."""
    return 0 if method.info.pretrains else 1 if method.info.writes == "weights" else 2


def _unimodal(infos: Sequence[Info]) -> Literal["reads", "trains", "leaves", "detaches", "tries"]:
    """What becomes of the unimodal logits, which one head makes for all."""
    does = {info.unimodal for info in infos if "unimodal" in info.needs}
    order = ("trains", "leaves", "detaches", "tries")
    return next((what for what in order if what in does), "reads")


def check_unimodal(infos: Sequence[Info]) -> None:
    """Raises if methods cannot share unimodal logits on the head that they are made for.

    Raises:
        ValueError: If one goes by unimodal logits that none trains, or trains encoders through
            some that reach none.
    """
    made = _unimodal(infos)
    takes = {"leaves": "reads", "detaches": "tries"}.get(made)
    takers = [info for info in infos if info.unimodal == takes and "unimodal" in info.needs]
    if not takers:
        return
    maker = next(info.title for info in infos if info.unimodal == made)
    said = (
        f"goes by unimodal logits, but with {maker} nothing trains the layers behind them"
        if made == "leaves"
        else f"trains encoders through unimodal logits, which in {maker} reach no encoder"
    )
    raise UserError(f"{takers[0].title} {said}. Leave one of them out.")


def _keeps_loss(method: Method) -> bool:
    return not overrides(method, "loss") or method.info.keeps_loss


def _name(method: Method) -> str:
    return type(method).__name__


def _listed(infos: Sequence[Info]) -> str:
    return " and ".join(info.title for info in infos)
