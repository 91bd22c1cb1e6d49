"""List every metric that a probe can report, one line each. Names are CSV columns and carry their SI unit."""

from __future__ import annotations

from dataclasses import dataclass

#: Endings of names that state the unit, longest first.
_UNIT_SUFFIXES = ("_images_per_s", "_j_per_image", "_per_forward", "_bytes", "_s")


@dataclass(frozen=True)
class Metric:
    """The definition of a metric."""

    name: str
    unit: str
    higher_is_better: bool
    statistic: str
    summary: str

    @property
    def label(self) -> str:
        """The name without the unit, in words."""
        if self.statistic == "share" and self.name.startswith("top"):
            return f"top-{self.name[3:]} accuracy"
        if self.name == "miou":
            return "mIoU"
        return self.name.removesuffix(self.suffix).replace("_", " ")

    @property
    def short(self) -> str:
        """The label without the word accuracy."""
        return self.label.removesuffix(" accuracy")

    @property
    def suffix(self) -> str:
        """The ending of the name that states the unit."""
        return next((suffix for suffix in _UNIT_SUFFIXES if self.name.endswith(suffix)), "")

    @property
    def is_repeatable(self) -> bool:
        """True if every run gives the same value, so that it needs no interval."""
        return self.statistic in ("exact", "max")

    @property
    def is_whole(self) -> bool:
        """True if its values are whole numbers."""
        return self.unit in ("1", "B", "MAC", "FLOP") and self.statistic not in ("median", "mean")


_ROWS = (
    ("latency_s", "s", False, "median", "wall time of one forward pass of the whole batch"),
    ("throughput_images_per_s", "images/s", True, "median", "batch / latency_s"),
    ("latency_backbone_s", "s", False, "median", "part of latency_s: the model without head (detect, segment; eager)"),
    ("latency_neck_s", "s", False, "median", "part of latency_s: pyramids and FPN (detect, segment; eager)"),
    ("latency_head_s", "s", False, "median", "part of latency_s: all behind the neck (detect, segment; eager)"),
    ("cpu_time_s", "s", False, "median", "process CPU time of one forward pass, all threads together"),
    ("page_faults_per_forward", "1", False, "median", "minor page faults of one forward pass"),
    ("involuntary_switches_per_forward", "1", False, "mean", "times the process was preempted in one forward pass"),
    ("first_forward_s", "s", False, "single", "wall time of the first forward pass, compilation included"),
    ("launch_share", "share", False, "ratio", "host time to launch a forward pass / latency_s (CUDA)"),
    ("compile_s", "s", False, "single", "first_forward_s − a later one, where nothing came from a compiler's cache"),
    ("yardstick_s", "s", False, "group median", "latency of a fixed network, timed in the same rounds"),
    ("paired_ratio", "ratio", False, "paired", "latency / that of the group's first model, paired round by round"),
    ("relative_latency", "yardsticks", False, "ratio", "latency_s / yardstick_s: free of changes of machine speed"),
    ("params", "1", False, "exact", "trainable parameters"),
    ("params_total", "1", False, "exact", "parameters, frozen ones included"),
    ("macs", "MAC", False, "exact", "multiply-accumulates of one image, analytic"),
    ("flops", "FLOP", False, "exact", "2 × macs + scan_flops"),
    ("scan_flops", "FLOP", False, "exact", "elementwise FLOPs of selective scans in one image; not part of macs"),
    ("macs_attention", "MAC", False, "exact", "part of macs: products of two activations"),
    ("macs_projection", "MAC", False, "exact", "part of macs: products with weights (projections, MLP, head)"),
    ("macs_convolution", "MAC", False, "exact", "part of macs: convolutions"),
    ("macs_backbone", "MAC", False, "exact", "part of macs: the model without its classifier (detect, segment)"),
    ("macs_neck", "MAC", False, "exact", "part of macs: pyramids and FPN (detect, segment)"),
    ("macs_head", "MAC", False, "exact", "part of macs: RPN, box and mask heads; fusing and classifying (segment)"),
    ("flops_normalisation", "FLOP", False, "exact", "normalisations and unfused softmaxes of one image; not in macs"),
    ("flops_elementwise", "FLOP", False, "exact", "elementwise work and reductions of one image; not in macs"),
    ("macs_fvcore", "MAC", False, "exact", "multiply-accumulates of one image, counted by fvcore with our handlers"),
    ("macs_flop_counter", "MAC", False, "exact", "multiply-accumulates of one image, torch's FlopCounterMode / 2"),
    ("peak_memory_bytes", "B", False, "max", "peak of live tensor bytes (CPU), of the allocator (CUDA)"),
    ("predicted_peak_bytes", "B", False, "exact", "peak_memory_bytes as predicted, without running"),
    ("peak_backbone_bytes", "B", False, "max", "peak_memory_bytes while the backbone runs (detect, segment; eager)"),
    ("peak_neck_bytes", "B", False, "max", "peak_memory_bytes while the neck runs (detect, segment; eager)"),
    ("peak_head_bytes", "B", False, "max", "peak_memory_bytes while the head runs (detect, segment; eager)"),
    ("predicted_backbone_bytes", "B", False, "exact", "peak_backbone_bytes as predicted"),
    ("predicted_neck_bytes", "B", False, "exact", "peak_neck_bytes as predicted"),
    ("predicted_head_bytes", "B", False, "exact", "peak_head_bytes as predicted"),
    ("weights_bytes", "B", False, "exact", "parameters and buffers"),
    ("input_bytes", "B", False, "exact", "the input batch"),
    ("optimizer_bytes", "B", False, "exact", "state of the optimizer (training)"),
    ("workspace_bytes", "B", False, "max", "other memory held before a pass: workspaces, tables (CUDA)"),
    ("activation_bytes", "B", False, "max", "peak_memory_bytes − the four above; in training with gradients"),
    ("peak_rss_bytes", "B", False, "max", "peak resident set of the worker during one forward pass (CPU)"),
    ("rss_growth_bytes", "B", False, "max", "peak_rss_bytes − resident set just before that forward pass (CPU)"),
    ("peak_reserved_bytes", "B", False, "max", "peak that the CUDA caching allocator reserved"),
    ("traffic_bytes", "B", False, "exact", "bytes that a forward pass must move: weights, input, output"),
    ("intensity_flop_per_byte", "FLOP/B", True, "exact", "2 × macs × batch / traffic_bytes"),
    ("achieved_flop_per_s", "FLOP/s", True, "ratio", "2 × macs × batch / latency_s"),
    ("roofline_share", "share", True, "ratio", "achieved_flop_per_s / min(peak rate, intensity × bandwidth)"),
    ("power_w", "W", False, "mean", "power of the card (CUDA), of the CPU packages (CPU), while the cell was timed"),
    ("energy_j_per_image", "J", False, "mean", "energy in that time / images"),
    ("gpu_clock_hz", "Hz", True, "mean", "clock of the card's multiprocessors"),
    ("gpu_memory_clock_hz", "Hz", True, "mean", "clock of the card's memory"),
    ("power_capped_share", "share", False, "mean", "share of the time in which the card ran at its power limit"),
    ("gpu_temperature_c", "°C", False, "max", "temperature of the card"),
    ("cpu_clock_hz", "Hz", True, "mean", "clock of the CPUs"),
    ("load_average", "1", False, "mean", "runnable processes of the last minute"),
    ("cpu_stolen_share", "share", False, "mean", "share of the machine's CPU time that the hypervisor gave to others"),
    ("cpu_others_share", "share", False, "mean", "share of the machine's CPU time that other processes took"),
    ("disturbed_share", "share", False, "mean", "share of the sample windows that were throttled or disturbed"),
    ("top1", "share", True, "share", "images whose best output is the label's"),
    ("top5", "share", True, "share", "images with the label among the five best outputs"),
    ("miou", "share", True, "share", "mean over classes of intersection / union of their pixels"),
    ("evaluated_images", "1", True, "exact", "images scored for top1 and top5, or miou"),
    ("unreadable_images", "1", False, "exact", "images that could not be decoded; they are left out of the shares"),
    ("evaluation_images_per_s", "images/s", True, "mean", "speed of the evaluation, image preparation included"),
    ("data_wait_share", "share", False, "mean", "share of the evaluation's time that was spent waiting for images"),
    ("device_process_bytes", "B", False, "max", "device memory of the worker process as NVML reports it"),
)  # fmt: skip
#: Accuracy metrics; a record has the first or, if pixels have classes, the second.
ACCURACIES = ("top1", "miou")
#: Metrics that have a constant part, the weights, and grow linearly with size from there.
FROM_WEIGHTS = ("peak_memory_bytes", "predicted_peak_bytes")
METRICS = {row[0]: Metric(*row) for row in _ROWS}
