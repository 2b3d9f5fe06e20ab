// RUN: moeloom-opt -p moe-lower-to-kernels{target=sm_90},canonicalize %s | filecheck %s
// RUN: moeloom-opt -p "moe-lower-to-kernels{target=sm_90 fusion=fused}" %s | filecheck --check-prefix=FORCED %s
// RUN: not moeloom-opt -p "moe-lower-to-kernels{target=sm_90 layout=row_major}" %s 2>&1 | filecheck --check-prefix=ROWS %s
// RUN: not moeloom-opt -p "moe-lower-to-kernels{target=gfx950 layout=stream}" %s 2>&1 | filecheck --check-prefix=ABSENT %s
// RUN: not moeloom-opt -p "moe-lower-to-kernels{target=gfx950 layout=mfma_stream}" %s 2>&1 | filecheck --check-prefix=NARROW %s

// Payload and scales are one stream; blocks of 8 rows take the decode kernels, those of 64 the prefill kernels.
// CHECK:       block = 64 : i64, {{.*}}steps = 4 : i64, stream_warps = 4 : i64, {{.*}}sym_name = "prefill_down_0"
// CHECK:       columns = 96 : i64, groups = 32 : i64, {{.*}}scale_mode = "even", x = "bf16"}, sym_name = "fake_quant_0"
// FORCED:      columns = 96 : i64, groups = 4 : i64, layout = "tiled_32x8", {{.*}}stage = 1 : i64, topk = 2 : i64}, sym_name = "expand_0"
// CHECK:       quantise = "even", {{.*}}sym_name = "decode_gate_up_2"
// CHECK:       early = true, {{.*}}sym_name = "decode_gate_up_1"
// CHECK:       early = true, {{.*}}sym_name = "decode_down_0"
// CHECK:       block = 64 : i64, {{.*}}programs = {{132|264}} : i64, ring = {{[34]}} : i64, step = 192 : i64, steps = 4 : i64, stream_warps = 8 : i64, topk = 2 : i64, x = "bf16"}, sym_name = "prefill_gate_up_0"
// CHECK:       early = false, {{.*}}sym_name = "decode_gate_up_0"
// CHECK-LABEL: func.func @two_plans
// CHECK-SAME:    %arg3: tensor<8x1x1x3x8x512xi8> {moe.pack = {columns = 96 : i64, count = 128 : i64, kind = "stream", layout = "stream", order = "nk", quantize = "none", rows = "gate_up_concatenated", sources = ["w", "s"], warps = 8 : i64}, moe.weight = "w"}
// CHECK-SAME:    %arg4: tensor<8x128x3xf8E8M0FNU> {moe.weight = "s"}
// CHECK:         [[EXCHANGE:%.*]] = "kernel.exchange"() : () -> tensor<{{[0-9]+}}xi32>
// CHECK:         "kernel.launch"({{%[^,]*}}, %arg0, {{%[^,]*}}, {{%[^,]*}}, {{%[^,]*}}, %arg3, [[EXCHANGE]]) {grid = #{{.*}}, kernel = @decode_gate_up_0
// CHECK:         "kernel.launch"({{%[^,]*}}, %arg0, {{%[^,]*}}, {{%[^,]*}}, {{%[^,]*}}, %arg3) {grid = #{{.*}}, kernel = @prefill_gate_up_0
// ROWS:        error: sort blocks of 8 rows have no kernel for target sm_90 and weights row_major; plan with block=16, 32, 64 or 128
// ABSENT:      error: target gfx950 has no weight layout stream; choose one of row_major, mfma_stream
// NARROW:      error: sort blocks of 8 rows have no kernel for target gfx950 and weights mfma_stream; plan with block=16, 32, 64 or 128
func.func @two_plans(%x: tensor<?x96xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>, %w1: tensor<8x128x96xf4E2M1FN> {moe.weight = "w"},
    %s1: tensor<8x128x3xf8E8M0FNU> {moe.weight = "s"}) -> (tensor<?x64xbf16>, tensor<?x64xbf16>) {
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {experts = 8 : i64, block = 8 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %h = "moe.gate_up"(%x, %s, %e, %n, %w1, %s1) {topk = 2 : i64, block = 8 : i64, activation = "silu", alpha = 1.0 : f32, limit = 7.0 : f32,
      gate_up_order = "concatenated", weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
    : (tensor<?x96xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<8x128x96xf4E2M1FN>, tensor<8x128x3xf8E8M0FNU>) -> tensor<?x64xbf16>
  %t, %tw, %f, %m = "moe.sort_tokens"(%ids, %w) {experts = 8 : i64, block = 64 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %g = "moe.gate_up"(%x, %t, %f, %m, %w1, %s1) {topk = 2 : i64, block = 64 : i64, activation = "silu", alpha = 1.0 : f32, limit = 7.0 : f32,
      gate_up_order = "concatenated", weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
    : (tensor<?x96xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<8x128x96xf4E2M1FN>, tensor<8x128x3xf8E8M0FNU>) -> tensor<?x64xbf16>
  return %h, %g : tensor<?x64xbf16>, tensor<?x64xbf16>
}

// A product reads the sorted list early where a launch on the way to its x has read it: not right behind the token sort.
// CHECK-LABEL: func.func @early_behind_a_reader_of_the_list
// CHECK:         kernel = @decode_gate_up_0
// CHECK:         kernel = @decode_down_0
// CHECK-LABEL: func.func @early_behind_the_scales
// CHECK:         kernel = @decode_gate_up_1
func.func @early_behind_a_reader_of_the_list(%x: tensor<?x96xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>,
    %w1: tensor<8x128x96xf4E2M1FN> {moe.weight = "w"}, %s1: tensor<8x128x3xf8E8M0FNU> {moe.weight = "s"},
    %w2: tensor<8x96x64xf4E2M1FN> {moe.weight = "v"}, %s2: tensor<8x96x2xf8E8M0FNU> {moe.weight = "t"}) -> tensor<?x96xf32> {
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {experts = 8 : i64, block = 8 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %h = "moe.gate_up"(%x, %s, %e, %n, %w1, %s1) {topk = 2 : i64, block = 8 : i64, activation = "silu", alpha = 1.0 : f32, limit = 7.0 : f32,
      gate_up_order = "concatenated", weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
    : (tensor<?x96xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<8x128x96xf4E2M1FN>, tensor<8x128x3xf8E8M0FNU>) -> tensor<?x64xbf16>
  %r = "moe.down"(%h, %s, %e, %n, %sw, %w2, %s2) {topk = 2 : i64, block = 8 : i64, weight_order = "nk",
      operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 1, 1, 0>}
    : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<?xf32>, tensor<8x96x64xf4E2M1FN>, tensor<8x96x2xf8E8M0FNU>) -> tensor<?x96xf32>
  return %r : tensor<?x96xf32>
}

func.func @early_behind_the_scales(%q: tensor<?x96xf4E2M1FN>, %r: tensor<?x3xf8E8M0FNU>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>,
    %w1: tensor<8x128x96xf4E2M1FN> {moe.weight = "w"}, %s1: tensor<8x128x3xf8E8M0FNU> {moe.weight = "s"}) -> tensor<?x64xbf16> {
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {experts = 8 : i64, block = 8 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %qs = "moe.sort_scales"(%r, %s, %n) {stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"}
    : (tensor<?x3xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x8xf8E8M0FNU>
  %h = "moe.gate_up"(%q, %qs, %s, %e, %n, %w1, %s1) {topk = 2 : i64, block = 8 : i64, activation = "silu", alpha = 1.0 : f32, limit = 7.0 : f32,
      gate_up_order = "concatenated", weight_order = "nk", operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 1, 1, 0>}
    : (tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<8x128x96xf4E2M1FN>, tensor<8x128x3xf8E8M0FNU>) -> tensor<?x64xbf16>
  return %h : tensor<?x64xbf16>
}

// A quantiser that a decode kernel alone reads becomes its scale mode: neither codes nor scales are written. Forced, it stays.
// CHECK-LABEL: func.func @quantises_on_the_way
// CHECK-NOT:     quant_sort
// CHECK:         "kernel.launch"({{%[^,]*}}, %arg0, {{.*}}kernel = @decode_gate_up_2
// CHECK:         return
// FORCED-LABEL: func.func @quantises_on_the_way
// FORCED:         moe.op = "moe.quant_sort"
// FORCED:         kernel = @decode_gate_up_
func.func @quantises_on_the_way(%x: tensor<?x96xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>,
    %w1: tensor<8x128x96xf4E2M1FN> {moe.weight = "w"}, %s1: tensor<8x128x3xf8E8M0FNU> {moe.weight = "s"}) -> tensor<?x64xbf16> {
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {experts = 8 : i64, block = 8 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %q, %qs = "moe.quant_sort"(%x, %s, %n) {kind = "per_1x32", scale_mode = "even", stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"}
    : (tensor<?x96xbf16>, tensor<?xi32>, tensor<2xi32>) -> (tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>)
  %h = "moe.gate_up"(%q, %qs, %s, %e, %n, %w1, %s1) {topk = 2 : i64, block = 8 : i64, activation = "silu", alpha = 1.0 : f32, limit = 7.0 : f32,
      gate_up_order = "concatenated", weight_order = "nk", operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 1, 1, 0>}
    : (tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<8x128x96xf4E2M1FN>, tensor<8x128x3xf8E8M0FNU>) -> tensor<?x64xbf16>
  return %h : tensor<?x64xbf16>
}

// The prefill kernels multiply bf16: x is rounded first. Where the quantiser is forced its codes are expanded, to as many rows as they have.
// CHECK-LABEL: func.func @rounded_first
// CHECK-NOT:     quant_sort
// CHECK:         [[X:%[0-9]*]] = "kernel.launch"({{%[^,]*}}, %arg0) {grid = #{{.*}}, kernel = @fake_quant_0, {{.*}}strided = array<i64: 0>}
// CHECK-SAME:      -> tensor<?x96xbf16>
// CHECK:         [[H:%[0-9]*]] = "kernel.launch"({{%[^,]*}}, [[X]], {{%[^,]*}}#0, {{%[^,]*}}#2, {{%[^,]*}}#3, %arg3) {grid = #{{.*}}, kernel = @prefill_gate_up_0, {{.*}}strided = array<i64: 0>}
// CHECK:         "kernel.launch"({{%[^,]*}}, [[H]], {{%[^,]*}}#0, {{%[^,]*}}#2, {{%[^,]*}}#3, {{%[^,]*}}#1, %arg5) {grid = #{{.*}}, kernel = @prefill_down_0, {{.*}}strided = array<i64>}
// FORCED-LABEL: func.func @rounded_first
// FORCED:         moe.op = "moe.quant_sort"
// FORCED:         [[X:%[0-9]*]] = "kernel.launch"({{%[^,]*}}, [[BOTH:%[0-9]*]]#5, [[BOTH]]#6, [[BOTH]]#0, [[BOTH]]#3) {grid = #{{.*}}, kernel = @expand_0, {{.*}}strided = array<i64: 0>}
// FORCED-SAME:      -> tensor<?x96xbf16>
// FORCED:         "kernel.launch"({{%[^,]*}}, [[X]], {{%[^,]*}}#0, {{%[^,]*}}#2, {{%[^,]*}}#3, %arg3) {grid = #{{.*}}, kernel = @prefill_gate_up_0, {{.*}}strided = array<i64: 0>}
func.func @rounded_first(%x: tensor<?x96xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>,
    %w1: tensor<8x128x96xf4E2M1FN> {moe.weight = "w"}, %s1: tensor<8x128x3xf8E8M0FNU> {moe.weight = "s"},
    %w2: tensor<8x96x64xf4E2M1FN> {moe.weight = "v"}, %s2: tensor<8x96x2xf8E8M0FNU> {moe.weight = "t"}) -> tensor<?x96xf32> {
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {experts = 8 : i64, block = 64 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %q, %qs = "moe.quant_sort"(%x, %s, %n) {kind = "per_1x32", scale_mode = "even", stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"}
    : (tensor<?x96xbf16>, tensor<?xi32>, tensor<2xi32>) -> (tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>)
  %h = "moe.gate_up"(%q, %qs, %s, %e, %n, %w1, %s1) {topk = 2 : i64, block = 64 : i64, activation = "silu", alpha = 1.0 : f32, limit = 7.0 : f32,
      gate_up_order = "concatenated", weight_order = "nk", operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 1, 1, 0>}
    : (tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<8x128x96xf4E2M1FN>, tensor<8x128x3xf8E8M0FNU>) -> tensor<?x64xbf16>
  %r = "moe.down"(%h, %s, %e, %n, %sw, %w2, %s2) {topk = 2 : i64, block = 64 : i64, weight_order = "nk",
      operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 1, 1, 0>}
    : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<?xf32>, tensor<8x96x64xf4E2M1FN>, tensor<8x96x2xf8E8M0FNU>) -> tensor<?x96xf32>
  return %r : tensor<?x96xf32>
}
