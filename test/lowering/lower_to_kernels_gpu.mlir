// RUN: moeloom-opt -p moe-lower-to-kernels{target=gfx950},canonicalize --split-input-file %s | filecheck %s
// RUN: moeloom-opt -p "moe-lower-to-kernels{target=sm_90 fusion=split}" --split-input-file %s | filecheck --check-prefix=SPLIT %s
// RUN: moeloom-opt -p "moe-lower-to-kernels{target=gfx942 fusion=fused}" --split-input-file %s | filecheck --check-prefix=FUSED %s

// A token sort is one launch, with the fused quantiser of stage 1, or three. The products read codes and sorted scales as they are; weights keep their rows.
// CHECK-DAG:   [[ROWS:#map[0-9]*]] = affine_map<(d0) -> (d0 * 2, 64)>
// CHECK-LABEL: func.func @gate_up
// CHECK-SAME:    %arg3: tensor<8x128x48xi8> {moe.pack = {kind = "payload", layout = "row_major", order = "nk", quantize = "none", rows = "gate_up_interleaved", sources = ["w"]}, moe.weight = "w"}
// CHECK-SAME:    %arg4: tensor<8x128x3xi8> {moe.pack = {kind = "scales", layout = "row_major"
// CHECK:         [[M:%.*]] = tensor.dim %arg0
// CHECK:         [[BOTH:%.*]]:7 = "kernel.alternatives"([[M]]) ({
// CHECK-NEXT:      "kernel.launch"([[M]], %arg1, %arg2, %arg0) {{.*}}kernel = @sort_quant_0, {{.*}}moe.op = "moe.quant_sort", moe.sort = array<i64: 2, 8, 32>{{.*}}strided = array<i64: 2>
// CHECK:         }, {
// CHECK:           [[COUNTS:%.*]] = "kernel.launch"([[M]], %arg1) {{.*}}kernel = @sort_count_0{{.*}} -> tensor<8x?xi32>
// CHECK:           [[STARTS:%.*]]:2 = "kernel.launch"([[M]], [[COUNTS]]) {{.*}}kernel = @sort_scan_0{{.*}} -> (tensor<8x?xi32>, tensor<8xi32>)
// CHECK:           [[SORT:%.*]]:5 = "kernel.launch"([[M]], %arg1, %arg2, [[STARTS]]#0, [[STARTS]]#1) {{.*}}kernel = @sort_scatter_0, moe.op = "moe.sort_tokens"
// CHECK:           "kernel.alternatives"([[M]]) ({
// CHECK:             "kernel.launch"([[M]], %arg0, [[SORT]]#4, [[SORT]]#3) {{.*}}kernel = @quant_sort_0, moe.op = "moe.quant_sort"
// CHECK:           }, {
// CHECK:             kernel = @quant_0
// CHECK:             kernel = @sort_scales_0
// CHECK:           }) {choice = "fusion", max_m = 1024
// CHECK:         }) {choice = "fusion", max_m = 256
// CHECK:         "kernel.launch"([[M]], [[BOTH]]#5, [[BOTH]]#6, [[BOTH]]#0, [[BOTH]]#2, [[BOTH]]#3, %arg3, %arg4) {{.*}}kernel = @gate_up_0, moe.op = "moe.gate_up"{{.*}}result_shapes = {{\[}}[[ROWS]]], strided = array<i64: 0>
// CHECK-NOT:     expand

// SPLIT-LABEL:   func.func @gate_up
// SPLIT-NOT:     quant_sort_0
// SPLIT:         :4 = "kernel.alternatives"
// SPLIT-NOT:     choice = "fusion"
// SPLIT:         kernel = @quant_0
// SPLIT:         kernel = @sort_scales_0
// FUSED-LABEL:   func.func @gate_up
// FUSED:         kernel = @sort_quant_0
// FUSED:         kernel = @quant_sort_0
// FUSED:         choice = "fusion", max_m = 256
func.func @gate_up(%x: tensor<?x96xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>, %w1: tensor<8x128x96xf4E2M1FN> {moe.weight = "w"},
    %s1: tensor<8x128x3xf8E8M0FNU> {moe.weight = "s"}) -> tensor<?x64xbf16> {
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {experts = 8 : i64, block = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %q, %ss = "moe.quant_sort"(%x, %s, %n) {kind = "per_1x32", scale_mode = "even", stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"}
    : (tensor<?x96xbf16>, tensor<?xi32>, tensor<2xi32>) -> (tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>)
  %h = "moe.gate_up"(%q, %ss, %s, %e, %n, %w1, %s1) {topk = 2 : i64, block = 32 : i64, activation = "silu", alpha = 1.0 : f32, limit = 7.0 : f32,
      gate_up_order = "interleaved", weight_order = "nk", operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 1, 1, 0>}
    : (tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<8x128x96xf4E2M1FN>, tensor<8x128x3xf8E8M0FNU>) -> tensor<?x64xbf16>
  return %h : tensor<?x64xbf16>
}
