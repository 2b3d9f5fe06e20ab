// RUN: moeloom-opt -p moe-lower-to-kernels,canonicalize --split-input-file %s | filecheck %s
// RUN: moeloom-opt -p moe-lower-to-kernels{fusion=split} --split-input-file %s | filecheck --check-prefix=SPLIT %s
// RUN: moeloom-opt -p moe-lower-to-kernels{fusion=fused} --split-input-file %s | filecheck --check-prefix=FUSED %s

// The fused kernel and the split pair are alternatives guarded by M; their sizes are functions of M alone.
// CHECK-DAG:   [[LIVE:#map[0-9]*]] = affine_map<(d0) -> (d0 * 4, (d0 * 4 - 8) floordiv 32 + 8)>
// CHECK-DAG:   "kernel.define"() {params = {columns = 96 : i64, scale_mode = "even", x = "bf16"}, sym_name = "quant_0", template = "quant"}
// CHECK-LABEL: func.func @quant_sort
// CHECK:         [[M:%.*]] = tensor.dim %arg0
// CHECK:         [[SORT:%.*]]:4 = "kernel.launch"([[M]], %arg1, %arg2) {{.*}}kernel = @sort_tokens_0
// CHECK:         [[SITE:%.*]]:2 = "kernel.alternatives"([[M]]) ({
// CHECK:           [[A:%.*]]:2 = "kernel.launch"([[M]], %arg0, [[SORT]]#0, [[SORT]]#3) {grid = [[LIVE]], kernel = @quant_sort_0{{.*}}strided = array<i64: 0>
// CHECK:           "kernel.yield"([[A]]#0, [[A]]#1)
// CHECK:         }, {
// CHECK:           [[B:%.*]]:2 = "kernel.launch"([[M]], %arg0) {{.*}}kernel = @quant_0
// CHECK:           [[C:%.*]] = "kernel.launch"([[M]], [[B]]#1, [[SORT]]#0, [[SORT]]#3) {{.*}}kernel = @sort_scales_0
// CHECK:           "kernel.yield"([[B]]#0, [[C]])
// CHECK:         }) {choice = "fusion", max_m = {{[0-9]+}} : i64
// CHECK:         return [[SITE]]#0, [[SITE]]#1

// SPLIT-LABEL: func.func @quant_sort
// SPLIT-NOT:     quant_sort_0
// SPLIT-NOT:     kernel.alternatives
// SPLIT:         kernel = @quant_0
// SPLIT:         kernel = @sort_scales_0

// FUSED-LABEL: func.func @quant_sort
// FUSED-NOT:     kernel.alternatives
// FUSED:         kernel = @quant_sort_0
// FUSED-NOT:     sort_scales_0
// FUSED:         return
func.func @quant_sort(%x: tensor<?x96xbf16>, %ids: tensor<?x4xi32>, %w: tensor<?x4xf32>) -> (tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>) {
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {experts = 8 : i64, block = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x4xi32>, tensor<?x4xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %q, %ss = "moe.quant_sort"(%x, %s, %n) {kind = "per_1x32", scale_mode = "even", stage = 1 : i64, topk = 4 : i64, layout = "tiled_32x8"}
    : (tensor<?x96xbf16>, tensor<?xi32>, tensor<2xi32>) -> (tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>)
  return %q, %ss : tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>
}

// -----

// A4 is expand, then the A16 kernel; the weight argument takes its packed type and the recipe that makes it.
// CHECK-LABEL: func.func @gate_up
// CHECK-SAME:    %arg3: tensor<8x8x3x4x16x4xi8> {moe.pack = {kind = "payload", layout = "n16k32", order = "nk", quantize = "none", rows = "gate_up_interleaved", sources = ["w"]}, moe.weight = "w"}
// CHECK-SAME:    %arg4: tensor<8x8x3x16xi8> {moe.pack = {kind = "scales"
// CHECK:         [[ROWS:%.*]] = "kernel.launch"({{.*}}kernel = @expand_0{{.*}} -> tensor<?x96xbf16>
// CHECK:         "kernel.launch"({{%.*}}, [[ROWS]], {{.*}}, %arg3, %arg4) {{.*}}kernel = @gate_up_0
func.func @gate_up(%x: tensor<?x96xbf16>, %ids: tensor<?x4xi32>, %w: tensor<?x4xf32>, %w1: tensor<8x128x96xf4E2M1FN> {moe.weight = "w"},
    %s1: tensor<8x128x3xf8E8M0FNU> {moe.weight = "s"}) -> tensor<?x64xbf16> {
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {experts = 8 : i64, block = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x4xi32>, tensor<?x4xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %q, %ss = "moe.quant_sort"(%x, %s, %n) {kind = "per_1x32", scale_mode = "even", stage = 1 : i64, topk = 4 : i64, layout = "tiled_32x8"}
    : (tensor<?x96xbf16>, tensor<?xi32>, tensor<2xi32>) -> (tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>)
  %h = "moe.gate_up"(%q, %ss, %s, %e, %n, %w1, %s1) {topk = 4 : i64, block = 32 : i64, activation = "silu", alpha = 1.0 : f32, limit = 7.0 : f32,
      gate_up_order = "interleaved", weight_order = "nk", operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 1, 1, 0>}
    : (tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<8x128x96xf4E2M1FN>, tensor<8x128x3xf8E8M0FNU>) -> tensor<?x64xbf16>
  return %h : tensor<?x64xbf16>
}

// -----

// With one expert a token nothing is quantised twice in stage 1, so its switch is that of stage 2.
// CHECK-LABEL: func.func @one_expert_a_token
// CHECK:         }) {choice = "fusion", max_m = 16384 : i64
func.func @one_expert_a_token(%x: tensor<?x96xbf16>, %ids: tensor<?x1xi32>, %w: tensor<?x1xf32>) -> (tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>) {
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {experts = 8 : i64, block = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x1xi32>, tensor<?x1xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %q, %ss = "moe.quant_sort"(%x, %s, %n) {kind = "per_1x32", scale_mode = "even", stage = 1 : i64, topk = 1 : i64, layout = "tiled_32x8"}
    : (tensor<?x96xbf16>, tensor<?xi32>, tensor<2xi32>) -> (tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>)
  return %q, %ss : tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>
}
