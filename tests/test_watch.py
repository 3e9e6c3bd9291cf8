"""What a loop forgets, or does to another model than the method's, is told and not trained."""

import copy
import warnings

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import evenly
from evenly.methods.ogm import OGM
from support import forward, loaders, net, sgd


def losses(method, model, count):
    for batch in list(loaders()[0])[:count]:
        method.backward(method.loss(*forward(model, batch)))


class TestBeforeEpoch:
    def test_forgotten(self):
        model = net()
        with pytest.raises(RuntimeError, match=r"OGM\.loss .* second batch"):
            losses(OGM(model.encoders), model, 2)

    def test_forgotten_by_a_method_that_has_none(self):
        """Joint training loses nothing by it."""
        model = net()
        losses(evenly.Method(model.encoders), model, 2)

    def test_not_needed_within_a_resumed_epoch(self):
        model = net()
        method, fresh = OGM(model.encoders), OGM(model.encoders)
        method.before_epoch(0)
        fresh.load_state_dict(method.state_dict())
        losses(fresh, model, 2)

    @torch.no_grad()
    def test_a_validation_before_training_is_none(self):
        model = net()
        method = OGM(model.encoders)
        for batch in loaders()[1]:
            method.loss(*forward(model, batch))

    def test_a_base_that_calls_its_base_counts_once(self):
        class Mine(OGM):
            def loss(self, output, target):
                return super().loss(output, target)

        model = net()
        losses(Mine(model.encoders), model, 1)

    @pytest.mark.parametrize("first", [0, 1])
    def test_a_second_training(self, first):
        """A method with a memory would go on where the first ended, from wherever epochs count."""
        model = net()
        method = OGM(model.encoders)
        for epoch in (first, first + 1):
            method.before_epoch(epoch)
        reached = rf"this OGM remembers epoch .* reached epoch {first + 1}\."
        with pytest.raises(RuntimeError, match=reached):
            method.before_epoch(first)

    def test_the_first_epoch_again(self):
        """A cell that broke off in it, a state that is loaded, a method without a memory."""
        model = net()
        method, other = OGM(model.encoders), evenly.Method(model.encoders)
        state = method.state_dict()
        for epoch in (0, 0, 1, 1):
            method.before_epoch(epoch)
        method.load_state_dict(state)
        method.before_epoch(0)
        for epoch in (0, 1, 0):
            other.before_epoch(epoch)


class TestBeforeStep:
    @staticmethod
    def accumulated(zeroed=None, before_each=True, skipped=False):
        """A batch of two passes, of which the last is followed by a step, then another batch."""
        model = net()
        method, optimizer = OGM(model.encoders), sgd(model)
        method.before_epoch(0)
        for number in range(4):
            losses(method, model, 1)
            last = number % 2 == 1
            if before_each or last:
                method.before_step()
            if last and not skipped:
                optimizer.step()
            if zeroed is not None:
                optimizer.zero_grad(set_to_none=zeroed)

    def test_after_each_accumulated_pass(self):
        with pytest.raises(RuntimeError, match=r"after OGM\.before_step without a step between"):
            self.accumulated()

    def test_after_each_pass_of_which_none_steps(self):
        with pytest.raises(RuntimeError, match=r"once for each step"):
            self.accumulated(skipped=True)

    def test_after_the_last_pass_alone(self):
        self.accumulated(before_each=False)

    @pytest.mark.parametrize("zeroed", [True, False])
    def test_of_a_step_that_a_scaler_skips(self, zeroed):
        self.accumulated(zeroed=zeroed, skipped=True)

    @staticmethod
    def scaled(model, held, zeroed):
        """Three batches, after the first of which a GradScaler skips the step."""
        method, optimizer = OGM(model.encoders), torch.optim.SGD(held, 0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=3e38, backoff_factor=1e-38)
        method.before_epoch(0)
        for number, batch in enumerate(list(loaders()[0])[:3]):
            before = [p.detach().clone() for p in held]
            method.backward(scaler.scale(10 * method.loss(*forward(model, batch))))
            scaler.unscale_(optimizer)
            method.before_step()
            scaler.step(optimizer)
            scaler.update()
            stepped = not all(map(torch.equal, held, before))
            assert stepped == (number > 0)
            if zeroed is not None:
                optimizer.zero_grad(set_to_none=zeroed)

    @pytest.mark.parametrize("zeroed", [True, False])
    def test_of_a_step_that_a_scaler_skips_for_some_parameters(self, zeroed):
        """The optimiser leaves a layer out, so `zero_grad` leaves its gradients."""
        model = net()
        out, *held = model.encoders["a"].parameters()
        held += [*model.encoders["aa"].parameters(), *model.head.parameters()]
        self.scaled(model, held, zeroed)
        assert out.grad.isnan().all()

    def test_of_a_step_that_a_scaler_skips_without_zero_grad(self):
        model = net()
        with pytest.raises(RuntimeError, match="or drop the gradients by"):
            self.scaled(model, [*model.parameters()], None)

    def test_of_gradients_that_the_method_drops(self):
        """What a method drops itself says nothing about the loop."""

        class Dropping(evenly.Method):
            def before_step(self):
                next(self.encoders["a"].parameters()).grad = None

        model = net()
        method = Dropping(model.encoders)
        losses(method, model, 1)
        method.before_step()
        with pytest.raises(RuntimeError, match=r"after Dropping\.before_step without a step"):
            losses(method, model, 1)

    def test_of_a_skipped_step_before_accumulated_passes(self):
        model = net()
        method, optimizer = OGM(model.encoders), sgd(model)
        method.before_epoch(0)
        for _ in range(2):
            losses(method, model, 2)
            method.before_step()
            optimizer.zero_grad()

    def test_forgotten(self):
        model = net()
        method, optimizer = OGM(model.encoders), sgd(model)
        method.before_epoch(0)
        losses(method, model, 1)
        with pytest.raises(RuntimeError, match=r"SGD\.step came without OGM\.before_step"):
            optimizer.step()

    def test_forgotten_of_a_copied_method(self):
        model = net()
        method = OGM(model.encoders)
        method.before_epoch(0)
        method, model = copy.deepcopy((method, model))
        optimizer = sgd(model)
        losses(method, model, 1)
        with pytest.raises(RuntimeError, match=r"SGD\.step came without OGM\.before_step"):
            optimizer.step()

    def test_of_another_training_beside_it(self):
        """A discriminator, a second model in the same notebook."""
        model, other = net(), net()
        method = OGM(model.encoders)
        method.before_epoch(0)
        losses(method, model, 1)
        evenly.Method().loss(*forward(other, next(iter(loaders()[0])))).backward()
        sgd(other).step()

    def test_of_a_loss_that_was_only_looked_at(self):
        model = net()
        method = OGM(model.encoders)
        method.before_epoch(0)
        output, target = forward(model, next(iter(loaders()[0])))
        method.loss(output, target).item()
        output.logits.sum().backward()
        sgd(model).step()

    def test_of_a_backward_pass_that_the_loop_calls_itself(self):
        model = net()
        method = OGM(model.encoders)
        method.before_epoch(0)
        method.loss(*forward(model, next(iter(loaders()[0])))).backward()
        with pytest.raises(RuntimeError, match=r"without OGM\.before_step"):
            sgd(model).step()

    def test_of_a_training_that_broke_off_before_this_one(self):
        """A cell that was interrupted and run again; its traceback keeps the first method."""
        model = net()
        first, second = OGM(model.encoders), OGM(model.encoders)
        for method in (first, second):
            method.before_epoch(0)
            losses(method, model, 1)
        second.before_step()
        sgd(model).step()

    def test_accumulated_passes_and_a_closure(self):
        model = net()
        method, optimizer = OGM(model.encoders), torch.optim.LBFGS(model.parameters(), max_iter=2)
        method.before_epoch(0)

        def closure():
            optimizer.zero_grad()
            losses(method, model, 2)
            method.before_step()
            return torch.zeros(())

        for _ in range(2):
            optimizer.step(closure)

    def test_an_epoch_that_was_broken_off(self):
        """The loss of a batch that a loop gave up says nothing about the teachers' training."""
        model = net(head="multi")
        optimizer = sgd(model)
        method = evenly.METHODS["g_blending"](
            model.encoders, optimizer=optimizer, trial_epochs=1, super_epoch=1, online=True
        )
        probe = evenly.Probe(model, forward, *loaders())
        method.before_epoch(0, probe)
        losses(method, model, 1)
        method.before_epoch(1, probe)


class TestAnotherModel:
    def test_a_copy(self):
        model = net()
        method = OGM(copy.deepcopy(model).encoders)
        method.before_epoch(0)
        with pytest.raises(ValueError, match=r"features of 'a' do not come from the encoder 'a'"):
            losses(method, model, 1)

    def test_names_that_are_swapped(self):
        model = net()
        method = OGM({"a": model.encoders["aa"], "aa": model.encoders["a"]})
        method.before_epoch(0)
        with pytest.raises(ValueError, match="under the names of their modalities"):
            losses(method, model, 1)

    def test_a_probe_of_another(self):
        method = evenly.Relearn(net().encoders)
        with pytest.raises(ValueError, match=r"'a' of Relearn is no part of the probe's model"):
            method.before_epoch(0, evenly.Probe(net(), forward, *loaders()))

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_checkpointed_activations(self, reentrant):
        model = net()
        method = OGM(model.encoders)
        method.before_epoch(0)
        inputs, target, _ = next(iter(loaders()[0]))
        features = {
            name: checkpoint(encoder, inputs[name].requires_grad_(), use_reentrant=reentrant)
            for name, encoder in model.encoders.items()
        }
        unimodal = evenly.split_linear(model.head.linear, features)
        logits = sum(unimodal.values())
        method.loss(evenly.Output(logits, features, unimodal), target)

    def test_a_layer_behind_checkpointed_activations(self):
        encoder, layer, head = (torch.nn.Linear(*sizes) for sizes in ((5, 6), (6, 6), (6, 3)))
        method = OGM({"a": encoder})
        method.before_epoch(0)
        x = torch.randn(4, 5, requires_grad=True)
        features = {"a": layer(checkpoint(encoder, x, use_reentrant=True))}
        unimodal = evenly.split_linear(head, features)
        method.loss(evenly.Output(unimodal["a"], features, unimodal), torch.arange(4) % 3)

    def test_a_layer_behind_an_encoder_that_is_frozen_at_first(self):
        encoder, layer, head = (torch.nn.Linear(*sizes) for sizes in ((5, 6), (6, 6), (6, 3)))
        method = OGM({"a": encoder})
        method.before_epoch(0)

        def loss(encoder):
            features = {"a": layer(encoder(torch.randn(4, 5)))}
            unimodal = evenly.split_linear(head, features)
            method.loss(evenly.Output(unimodal["a"], features, unimodal), torch.arange(4) % 3)

        loss(encoder.requires_grad_(False))
        encoder.requires_grad_(True)
        with pytest.raises(ValueError, match="do not come from the encoder"):
            loss(copy.deepcopy(encoder))

    def test_a_layer_behind_an_encoder_that_ran_under_no_grad_at_first(self):
        encoder, layer, head = (torch.nn.Linear(*sizes) for sizes in ((5, 6), (6, 6), (6, 3)))
        model = torch.nn.ModuleDict({"encoder": encoder, "layer": layer, "head": head})
        method = OGM({"a": encoder})

        def forward(model, batch):
            x, target = batch
            with torch.set_grad_enabled(torch.is_grad_enabled() and not warming):
                features = model["encoder"](x)
            features = {"a": model["layer"](features)}
            unimodal = evenly.split_linear(model["head"], features)
            return evenly.Output(unimodal["a"], features, unimodal), target

        batch = torch.randn(4, 5), torch.arange(4) % 3
        method.before_epoch(0, evenly.Probe(model, forward, [batch], [batch]))
        for warming in (True, False):  # noqa: B007
            method.loss(*forward(model, batch))
        warming = True
        with pytest.raises(ValueError, match="do not come from the encoder"):
            OGM({"a": encoder}).loss(*forward(model, batch))

    def test_a_compiled_encoder(self):
        """Its parameters are the encoder's own."""
        encoder, head = torch.nn.Linear(5, 6), torch.nn.Linear(6, 3)
        method = OGM({"a": encoder})
        method.before_epoch(0)
        features = {"a": torch.compile(encoder, backend="aot_eager")(torch.randn(4, 5))}
        unimodal = evenly.split_linear(head, features)
        method.loss(evenly.Output(unimodal["a"], features, unimodal), torch.arange(4) % 3)


class Lion(torch.optim.Optimizer):
    """Of one's own: no second moment to be found."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad.sign(), alpha=group["lr"])


class TestOptimisers:
    @staticmethod
    def heard(kind, make):
        model = net()
        method, optimizer = kind(model.encoders), make(model.parameters())
        method.before_epoch(0)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always", UserWarning)
            for _ in range(3):
                losses(method, model, 1)
                method.before_step()
                optimizer.step()
        return [str(w.message) for w in found if "size of gradients" in str(w.message)]

    @pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.Rprop, Lion])
    def test_one_that_divides_size_is_told_once(self, make):
        (said,) = self.heard(OGM, make)
        assert f"OGM acts by the size of gradients, which {make.__name__} divides out" in said

    def test_a_method_that_is_not_used_says_nothing(self):
        model = net()
        unused, optimizer = OGM(model.encoders), torch.optim.AdamW(model.parameters())
        method = evenly.Method(model.encoders)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            losses(method, model, 1)
            optimizer.step()
        del unused

    def test_sgd_and_methods_that_do_not_care(self):
        assert not self.heard(OGM, torch.optim.SGD)
        assert not self.heard(evenly.Method, torch.optim.AdamW)
