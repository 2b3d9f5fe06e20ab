// RUN: moeloom-opt -p "moe-lower-to-kernels{target=gfx950 layout=mfma_stream},canonicalize" %s | filecheck %s
// RUN: moeloom-opt -p "moe-lower-to-kernels{target=gfx942 layout=mfma_stream},canonicalize" %s | filecheck %s
// RUN: moeloom-opt -p moe-lower-to-kernels{target=gfx950},canonicalize %s | filecheck --check-prefix=AUTO %s

// Blocks of 16 rows take the decode kernels, larger ones the portable products, of the same stream. Not timed: auto is rows.
// CHECK-LABEL: func.func @two_plans_of_mfma_streams
// CHECK-SAME:    %arg3: tensor<8x2x1x4352xi8> {moe.pack = {columns = 96 : i64, count = 128 : i64, kind = "stream", layout = "mfma_stream", order = "nk", quantize = "none", rows = "gate_up_concatenated", sources = ["w", "s"]}, moe.weight = "w"}
// CHECK-SAME:    %arg4: tensor<8x128x3xf8E8M0FNU> {moe.weight = "s"}
// CHECK:         "kernel.launch"({{%[^,]*}}, %arg0, {{%[^,]*}}, {{%[^,]*}}, {{%[^,]*}}, %arg3) {grid = #{{.*}}, kernel = @decode_mfma_gate_up_0
// CHECK:         "kernel.launch"({{%[^,]*}}, %arg0, {{%[^,]*}}, {{%[^,]*}}, {{%[^,]*}}, %arg3) {grid = #{{.*}}, kernel = @gate_up_0
// AUTO:          layout = "row_major"
// AUTO-NOT:      decode_mfma
func.func @two_plans_of_mfma_streams(%x: tensor<?x96xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>, %w1: tensor<8x128x96xf4E2M1FN> {moe.weight = "w"},
    %s1: tensor<8x128x3xf8E8M0FNU> {moe.weight = "s"}) -> (tensor<?x64xbf16>, tensor<?x64xbf16>) {
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {experts = 8 : i64, block = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %h = "moe.gate_up"(%x, %s, %e, %n, %w1, %s1) {topk = 2 : i64, block = 16 : i64, activation = "silu", alpha = 1.0 : f32, limit = 7.0 : f32,
      gate_up_order = "concatenated", weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
    : (tensor<?x96xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<8x128x96xf4E2M1FN>, tensor<8x128x3xf8E8M0FNU>) -> tensor<?x64xbf16>
  %t, %tw, %f, %m = "moe.sort_tokens"(%ids, %w) {experts = 8 : i64, block = 64 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %g = "moe.gate_up"(%x, %t, %f, %m, %w1, %s1) {topk = 2 : i64, block = 64 : i64, activation = "silu", alpha = 1.0 : f32, limit = 7.0 : f32,
      gate_up_order = "concatenated", weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
    : (tensor<?x96xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<8x128x96xf4E2M1FN>, tensor<8x128x3xf8E8M0FNU>) -> tensor<?x64xbf16>
  return %h, %g : tensor<?x64xbf16>, tensor<?x64xbf16>
}
