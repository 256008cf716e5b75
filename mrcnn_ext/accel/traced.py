"""Networks whose operations `torch.fx` can follow: what follows a convolution or a linear layer becomes part of it."""

import inspect
import operator
import threading
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from .conv_classes import is_relu
from .fused_blocks import FusedBlock
from .fused_layers import FusedConv2d, FusedConvTranspose2d, FusedLinear
from .fused_module import FusedModule, MethodStep, replace_child, replace_method
from .mixed_precision import contiguous_float32
from .norms import activation_of, foldable, is_norm
from .policy import KernelPolicy
from .rules import fuse, fuse_children, has_rule

__all__ = ["FusedConvStack", "FusedNetwork", "UntraceableError", "fuse_traced"]

_ADDITIONS = (operator.add, operator.iadd, torch.add)
_NOTHING_AT_INFERENCE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_FOLLOWING = threading.RLock()  # fx changes what all modules have in common while it follows one
_LAYERS = (FusedConv2d, FusedConvTranspose2d, FusedLinear)


class UntraceableError(Exception):
    """`torch.fx` cannot follow a network; the message says why."""


def fuse_traced(
    module: nn.Module, policy: KernelPolicy, method: str = "forward", float32: bool = False
) -> nn.Module | None:
    """Fuses a network by the operations of one of its methods, as `fuse` describes it.

    Args:
        module, policy: as of `fuse`.
        method: what to follow.
        float32: whether its results are to be float32, and contiguous, whatever the policy.

    Returns:
        A `FusedNetwork`; for another method than ``forward`` the module itself, whose method is replaced; None if
        `torch.fx` cannot follow the method or there is nothing in it to fuse.
    """
    try:
        program = _Program(module, method, policy)
    except UntraceableError:
        return None
    if not program.fuses:
        return None
    if method == "forward":
        cls = FusedConvStack if isinstance(module, nn.Sequential) else FusedNetwork
        return cls(module, policy, program, float32)
    replace_method(_TracedMethod(module, method, program, float32))
    return module


class FusedNetwork(FusedModule):
    """A network whose forward `torch.fx` has followed once; optional arguments other than their defaults take the
    original's forward instead.

    Args:
        original: the network, in evaluation mode.
        policy: what to compute with.
        program: of the original's forward; None to follow it now.
        float32: whether to give float32 results, whatever the policy.

    Raises:
        UntraceableError: ``program`` is None and the network cannot be followed.
    """

    def __init__(
        self,
        original: nn.Module,
        policy: KernelPolicy,
        program: "_Program | None" = None,
        float32: bool = False,
    ):
        super().__init__(original)
        self.policy = policy
        self.float32 = float32
        self.program = program or _Program(original, "forward", policy)

    def infer(self, *args, **kwargs):
        result = self.program(self.original, *args, **kwargs)
        return contiguous_float32(result) if self.float32 else result

    def extra_repr(self) -> str:
        return f"{type(self.original).__name__}: {self.program}"


class FusedConvStack(FusedNetwork, nn.Sequential):
    """A ``nn.Sequential`` as a `FusedNetwork`; its layers can be indexed as before."""


class _TracedMethod(MethodStep):
    """A method other than forward, ``layers`` of detectron2's heads say."""

    def __init__(self, module, method, program, float32):
        super().__init__(module, method)
        self.program = program
        self.float32 = float32

    def __call__(self, *args, **kwargs):
        if self.module.training:
            return self.stock(*args, **kwargs)
        result = self.program(self.module, *args, **kwargs)
        return contiguous_float32(result) if self.float32 else result


# --- following a network -----------------------------------------------------------------------------------


class _Proxy(fx.Proxy):
    """Records that ``x += y`` writes into x, which whoever has x sees."""

    def __iadd__(self, other):
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other):
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other):
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other):
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class _Tracer(fx.Tracer):
    """Follows a method into every module but those that have a rule, and those whose forward it cannot follow: they
    are called as a whole."""

    def __init__(self, method: str):
        super().__init__()
        self.traced_func_name = method
        self._thread = threading.get_ident()

    # While fx follows a network, the calls and attributes of all modules come here, those of other threads too.
    def getattr(self, attr, attr_val, parameter_proxy_cache):
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node):
        return _Proxy(node, self)

    def call_module(self, module, forward, args, kwargs):
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        count, depth = len(self.graph.nodes), len(self.module_stack)
        try:
            return super().call_module(module, forward, args, kwargs)
        except Exception:  # whatever its own code raises when given no tensors
            for node in reversed(list(self.graph.nodes)[count:]):
                self.graph.erase_node(node)
            while len(self.module_stack) > depth:  # which fx leaves as it was
                self.module_stack.popitem()
            return self.create_proxy("call_module", self.path_of_module(module), args, kwargs)

    def is_leaf_module(self, module, name):
        if isinstance(module, nn.Sequential) and not has_rule(module):
            return False
        return has_rule(module) or is_norm(module) or super().is_leaf_module(module, name)


@dataclass
class _Layer:
    """A fused layer, or a block, with what became part of it."""

    name: str
    x: Any
    norm: str | None = None
    activation: str | None = None
    add: Any = None
    relu: bool = False
    pool: bool = False
    flatten: bool = False


@dataclass
class _Call:
    """Any other operation."""

    kind: str  # as fx calls it
    target: Any
    args: tuple
    kwargs: dict


@dataclass
class _Step:
    output: int
    what: "_Layer | _Call"
    last_uses: list[int] = field(default_factory=list)
    disposable: set[int] = field(default_factory=set)  # of those, the ones of which nobody can have a view


@dataclass(frozen=True)
class _Value:
    """The result of a step, by its number."""

    index: int


class _Program:
    """What a method does, step by step. Its modules are found by their names, so that copies find their own; copies
    and pickles follow the method anew when they are called first."""

    def __init__(self, root: nn.Module, method: str, policy: KernelPolicy):
        self.method, self.policy = method, policy
        self._is_ready = False
        self._follow(root)

    def _follow(self, root):
        with _FOLLOWING:
            if not self._is_ready:
                self._follow_alone(root)
                self._is_ready = True

    def _follow_alone(self, root):
        signature = inspect.signature(getattr(type(root), self.method))
        self.required, defaults = [], {}
        for parameter in list(signature.parameters.values())[1:]:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise UntraceableError(f"{type(root).__name__}.{self.method} takes any number of arguments")
            if parameter.default is parameter.empty:
                self.required.append(parameter.name)
            else:
                defaults[parameter.name] = parameter.default
        nodes = _trace(root, self.method, self.required, defaults)
        for node in nodes:
            if node.op == "call_module":
                _fuse_leaf(root, node.target, self.policy)
        modules = {node: root.get_submodule(node.target) for node in nodes if node.op == "call_module"}
        self.layers, self.fuses = 0, 0
        self._build(nodes, _Matcher(nodes, modules), modules)

    def _build(self, nodes, matcher, modules):
        numbers, self.steps, self.inputs, self.result = {}, [], [], None

        def refer(value):
            return fx.map_arg(value, lambda node: _Value(numbers[node]))

        for number, node in enumerate(nodes):
            numbers[node] = number
            if node in matcher.absorbed:
                continue
            layer = matcher.layers.get(node)
            if node.op == "placeholder":
                self.inputs.append((node.target, number))
            elif node.op == "output":
                self.result = refer(node.args[0])
            elif node in matcher.aliases:
                numbers[node] = numbers[node.args[0]]
            elif layer is not None:
                what = _Layer(**{**vars(layer), "x": refer(layer.x), "add": refer(layer.add)})
                self.steps.append(_Step(number, what))
                self.layers += 1
                self.fuses += 1
            else:
                call = _Call(node.op, node.target, refer(node.args), refer(node.kwargs))
                if node.op == "call_module":
                    self.fuses += any(isinstance(module, FusedModule) for module in modules[node].modules())
                self.steps.append(_Step(number, call))
        self.size = len(nodes)
        self._find_last_uses()
        for node, layer in matcher.layers.items():
            module = modules[matcher.layer_nodes[node]]
            if isinstance(module, _LAYERS):
                module.fuses = _described(layer)

    def _find_last_uses(self):
        live = set(_values(self.result))
        viewed = {n for step in self.steps if isinstance(step.what, _Call) for n in _values(vars(step.what))}
        for step in reversed(self.steps):
            used = set(_values(vars(step.what)))
            step.last_uses = sorted(used - live)
            step.disposable = used - live - viewed
            live |= used

    def __call__(self, root: nn.Module, *args, **kwargs):
        if not self._is_ready:
            self._follow(root)
        if len(args) + len(kwargs) != len(self.required) or not kwargs.keys() <= set(self.required):
            return getattr(type(root), self.method)(root, *args, **kwargs)
        given = {**dict(zip(self.required, args, strict=False)), **kwargs}
        values: list = [None] * self.size
        for name, number in self.inputs:
            if name in given:
                values[number] = given[name]
        device = next((value.device for value in given.values() if isinstance(value, Tensor)), None)
        half = self.policy.autocast
        if device is None or half is None:
            return self._run(root, values)
        with torch.autocast(device.type, half):
            return self._run(root, values)

    def _run(self, root, values):
        fresh = set()  # results that nobody else can have: they may be written over
        for step in self.steps:
            what = step.what
            if isinstance(what, _Layer):
                values[step.output], is_fresh = self._run_layer(root, what, values, fresh & step.disposable)
                if is_fresh:
                    fresh.add(step.output)
            else:
                args, kwargs = _resolve(what.args, values), _resolve(what.kwargs, values)
                values[step.output] = _call(root, what, args, kwargs)
            for number in step.last_uses:
                values[number] = None
        return _resolve(self.result, values)

    def _run_layer(self, root, what, values, disposable):
        """The result of a layer, and whether nobody else has it."""
        layer, x = root.get_submodule(what.name), values[what.x.index]
        if isinstance(layer, FusedBlock):
            if layer._forward_hooks or layer._forward_pre_hooks:
                return layer(x), False  # a hook may have kept it
            return layer.run(x, overwrite=what.x.index in disposable), True
        if isinstance(layer, FusedLinear):
            if not what.flatten:
                return layer.run(x, what.relu), True
            if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
                return layer.run_on_map(x, what.relu), True
            return layer.run(x.flatten(1), what.relu), True
        if isinstance(layer, FusedConvTranspose2d):
            return layer.run(x, what.relu), True
        norm = None if what.norm is None else root.get_submodule(what.norm)
        if what.pool:
            if layer.runs_as_stem(x, norm):
                return layer.run_stem(x, norm), True
            x = layer.run(x, relu=True, norm=norm)
            return F.max_pool2d(x, kernel_size=3, stride=2, padding=1), True
        add = None if what.add is None else values[what.add.index]
        if add is not None and tuple(add.shape) != layer.output_shape(x):  # to be broadcast
            x = layer.run(x, norm=norm) + add
            return x.relu_() if what.relu else x, True
        if add is not None:
            kept = add
            add = add.to(self.policy.dtype)
            if add is kept and what.add.index not in disposable:
                add = add.clone()
        x = layer.run(x, relu=what.relu, add=add, norm=norm)
        if what.activation is not None:
            norm = root.get_submodule(what.activation)
            x = activation_of(norm)(x)
        return x, True

    def __getstate__(self):
        return {"method": self.method, "policy": self.policy, "_is_ready": False}

    def __str__(self) -> str:
        if not self._is_ready:
            return "followed by torch.fx when it is called"
        others = len(self.steps) - self.layers
        return f"{self.layers} fused layers and {others} other operations, followed by torch.fx"


def _trace(root, method, required, defaults) -> list[fx.Node]:
    hooked = [
        name for name, module in root.named_modules() if module._forward_hooks or module._forward_pre_hooks
    ]
    if hooked:
        raise UntraceableError(f"{hooked[0] or type(root).__name__} has forward hooks")
    try:
        graph = _Tracer(method).trace(root, concrete_args=defaults or None)
    except Exception as error:  # whatever the network's own code raises when given no tensors
        raise UntraceableError(f"{type(root).__name__}.{method}: {error}") from error
    # Those of arguments that have their defaults, which fx checks.
    checks, nodes = set(), []
    for node in graph.nodes:
        is_default = node.op == "placeholder" and node.target not in required
        if is_default or any(argument in checks for argument in node.all_input_nodes):
            checks.add(node)
        else:
            nodes.append(node)
    return nodes


def _fuse_leaf(root, name, policy):
    child = root.get_submodule(name)
    if isinstance(child, FusedModule) or (not has_rule(child) and next(child.children(), None) is None):
        return
    fused = fuse(child, policy)
    if fused is not None:
        parent, _, leaf = name.rpartition(".")
        replace_child(root.get_submodule(parent), leaf, fused)
    else:
        fuse_children(child, policy)


def _described(layer: _Layer) -> tuple[str, ...]:
    parts = [] if layer.norm is None else [f"norm={layer.norm}"]
    parts += ["add"] if layer.add is not None else []
    parts += ["relu"] if layer.relu else []
    return tuple(parts + (["max_pool"] if layer.pool else []))


# --- what follows what -------------------------------------------------------------------------------------


class _Matcher:
    """Which operations become part of which layer.

    Attributes:
        layers: by the last operation that is part of it.
        layer_nodes: the layer's own call, by the same.
        absorbed: operations that are part of a layer, but for the last ones.
        aliases: operations that do nothing at inference.
    """

    def __init__(self, nodes: list[fx.Node], modules: dict[fx.Node, nn.Module]):
        self._modules = modules
        self._calls: dict[nn.Module, int] = {}
        for called in modules.values():
            self._calls[called] = self._calls.get(called, 0) + 1
        self._order = {node: number for number, node in enumerate(nodes)}
        self.layers: dict[fx.Node, _Layer] = {}
        self.layer_nodes: dict[fx.Node, fx.Node] = {}
        self.absorbed: set[fx.Node] = set()
        self.aliases: set[fx.Node] = set()
        for node in nodes:
            module = modules.get(node)
            if type(module) in _NOTHING_AT_INFERENCE:
                self.aliases.add(node)
            elif isinstance(module, FusedBlock) and len(node.args) == 1 and not node.kwargs:
                self._add(node, node, _Layer(str(node.target), node.args[0]))
            elif isinstance(module, _LAYERS) and len(node.args) == 1 and not node.kwargs:
                self._match(node, module)

    def _add(self, last, first, layer):
        self.layers[last] = layer
        self.layer_nodes[last] = first

    def _match(self, node, module):
        layer, last, parts = _Layer(node.target, node.args[0]), node, []

        def absorb(user):
            nonlocal last
            parts.append(last)
            last = user

        if isinstance(module, FusedLinear):
            source = node.args[0]
            if _is_flatten(source, self._modules) and len(source.users) == 1:
                layer.x, layer.flatten = source.args[0], True
                self.absorbed.add(source)
        user = self._only_user(last)
        if isinstance(module, FusedConv2d) and not module.relu:
            norm = self._modules.get(user)
            alone = self._calls.get(norm) == self._calls[module] == 1
            if module.own_norm is None and norm is not None and is_norm(norm) and foldable(norm) and alone:
                activation = activation_of(norm)
                if activation is None or isinstance(activation, (nn.ReLU, nn.Identity)):
                    layer.relu = isinstance(activation, nn.ReLU)
                else:
                    layer.activation = user.target
                layer.norm = user.target
                absorb(user)
                user = self._only_user(last)
            other = self._other_summand(user, last) if not layer.relu and layer.activation is None else None
            if other is not None:
                layer.add = other
                absorb(user)
                user = self._only_user(last)
        if not layer.relu and layer.activation is None and self._is_relu(user):
            layer.relu = True
            absorb(user)
            user = self._only_user(last)
        relu = layer.relu or getattr(module, "relu", False)
        if isinstance(module, FusedConv2d) and relu and layer.add is None and self._is_max_pool(user):
            layer.pool = True
            absorb(user)
        self.absorbed.update(parts)
        self._add(last, node, layer)

    def _only_user(self, node):
        users = list(node.users)
        if len(users) != 1:
            return None
        if type(self._modules.get(users[0])) in _NOTHING_AT_INFERENCE:
            return None
        return users[0] if users[0] not in self.absorbed and users[0] not in self.layers else None

    def _other_summand(self, node, term):
        """The other of the two summands of an addition, if that is what it is and the other is there by then."""
        if node is None or node.kwargs or len(node.args) != 2:
            return None
        is_method = node.op == "call_method" and node.target in ("add", "add_")
        if not is_method and not (node.op == "call_function" and node.target in _ADDITIONS):
            return None
        first, second = node.args
        other = second if first is term else first
        if not isinstance(other, fx.Node) or other is term:
            return None
        in_place = node.target in (operator.iadd, "add_")
        if in_place and first is other and any(self._order[user] > self._order[node] for user in other.users):
            return None  # whoever uses it later means the sum
        return other

    def _is_relu(self, node):
        if node is None:
            return False
        if node.op == "call_module":
            return is_relu(self._modules[node])
        return (node.op == "call_function" and is_relu(node.target)) or (
            node.op == "call_method" and node.target in ("relu", "relu_")
        )

    def _is_max_pool(self, node):
        """Whether it is max pooling of 3x3, stride 2 and padding 1, as in the stem of a ResNet."""
        module = self._modules.get(node)
        if type(module) is nn.MaxPool2d:
            geometry = (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
            return not module.return_indices and geometry in (
                (3, 2, 1, 1, False),
                ((3, 3), (2, 2), (1, 1), (1, 1), False),
            )
        return False


def _is_flatten(node, modules):
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_module":
        module = modules.get(node)
        return type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)
    flattens = (node.op == "call_function" and node.target is torch.flatten) or (
        node.op == "call_method" and node.target == "flatten"
    )
    arguments = {**dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)), **node.kwargs}
    return (
        flattens
        and arguments.pop("start_dim", 0) == 1
        and arguments.pop("end_dim", -1) == -1
        and not arguments
    )


# --- running it --------------------------------------------------------------------------------------------


def _call(root, what, args, kwargs):
    if what.kind == "call_module":
        return root.get_submodule(what.target)(*args, **kwargs)
    if what.kind == "call_function":
        return what.target(*args, **kwargs)
    if what.kind == "call_method":
        return getattr(args[0], what.target)(*args[1:], **kwargs)
    return operator.attrgetter(what.target)(root)  # get_attr


def _resolve(value, values):
    if isinstance(value, _Value):
        return values[value.index]
    if isinstance(value, tuple):
        items = [_resolve(item, values) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [_resolve(item, values) for item in value]
    if isinstance(value, dict):
        return {key: _resolve(item, values) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(_resolve(item, values) for item in (value.start, value.stop, value.step)))
    return value


def _values(value):
    if isinstance(value, _Value):
        yield value.index
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _values(item)
    elif isinstance(value, dict):
        yield from _values(list(value.values()))
    elif isinstance(value, slice):
        yield from _values([value.start, value.stop, value.step])
