// RUN: moeloom-opt %s -p moe-plan-experts | filecheck %s --check-prefix=TWO
// RUN: moeloom-opt %s -p "moe-plan-experts{stages=1 scale_mode=rceil routing_weight_stage=1}" | filecheck %s --check-prefix=ONE
// RUN: moeloom-opt %s -p "moe-plan-experts{routing_weight_stage=1 block=64 layout=row_major}" | filecheck %s --check-prefix=WEIGHT
// RUN: moeloom-opt %s -p moe-plan-experts,moe-fuse-quant-sort | filecheck %s --check-prefix=FUSED
// RUN: moeloom-opt %s -p "moe-plan-experts{stages=1},moe-fuse-quant-sort" | filecheck %s --check-prefix=FUSED1
// RUN: moeloom-opt %s -p "moe-plan-experts{stages=1 block=128 decode=4:8:2,16:32:2},moe-fuse-quant-sort" | filecheck %s --check-prefix=RANGES
// Planning twice is the same as once.
// RUN: moeloom-opt %s -p moe-plan-experts,moe-plan-experts | filecheck %s --check-prefix=TWO

// TWO-LABEL:     func.func @gpt_oss
// TWO-NEXT:        [[S:%.*]]:4 = "moe.sort_tokens"(%arg1, %arg2, %arg9) {block = 32 : i64, experts = 4 : i64, operandSegmentSizes = array<i32: 1, 1, 1, 0>}
// TWO-NEXT:        [[Q:%.*]]:2 = "moe.quant"(%arg0) {kind = "per_1x32", scale_mode = "even"} : (tensor<?x64xbf16>)
// TWO-NEXT:        [[QS:%.*]] = "moe.sort_scales"([[Q]]#1, [[S]]#0, [[S]]#3) {layout = "tiled_32x8", stage = 1 : i64, topk = 2 : i64}{{.*}} -> tensor<?x8xf8E8M0FNU>
// TWO-NEXT:        [[H:%.*]] = "moe.gate_up"([[Q]]#0, [[QS]], [[S]]#0, [[S]]#2, [[S]]#3, %arg3, %arg4, %arg5) {activation = "swiglu", alpha = 1.702{{.*}}, block = 32 : i64, gate_up_order = "interleaved", limit = 7.000000e+00 : f32, operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 1, 1, 1>, topk = 2 : i64, weight_order = "nk"}{{.*}} -> tensor<?x96xbf16>
// TWO-NEXT:        [[P:%.*]]:2 = "moe.quant"([[H]]) {{.*}} : (tensor<?x96xbf16>) -> (tensor<?x96xf4E2M1FN>, tensor<?x3xf8E8M0FNU>)
// TWO-NEXT:        [[PS:%.*]] = "moe.sort_scales"([[P]]#1, [[S]]#0, [[S]]#3) {layout = "tiled_32x8", stage = 2 : i64, topk = 2 : i64}
// TWO-NEXT:        [[D:%.*]] = "moe.down"([[P]]#0, [[PS]], [[S]]#0, [[S]]#2, [[S]]#3, [[S]]#1, %arg6, %arg7, %arg8) {{.*}} -> tensor<?x64xf32>
// TWO-NEXT:        [[OUT:%.*]] = "moe.combine"([[D]], %arg1, %arg9) {{.*}} -> tensor<?x64xbf16>
// TWO-NEXT:        return [[OUT]]
// ONE-LABEL:     func.func @gpt_oss
// ONE-NEXT:        [[S:%.*]]:4 = "moe.sort_tokens"
// ONE-NEXT:        [[Q:%.*]]:2 = "moe.quant"(%arg0) {kind = "per_1x32", scale_mode = "rceil"}
// ONE-NEXT:        [[QS:%.*]] = "moe.sort_scales"([[Q]]#1, [[S]]#0, [[S]]#3) {{.*}}stage = 1
// ONE-NEXT:        [[D:%.*]] = "moe.experts_one_stage"([[Q]]#0, [[QS]], [[S]]#0, [[S]]#2, [[S]]#3, [[S]]#1, %arg3, %arg4, %arg5, %arg6, %arg7, %arg8)
// ONE-SAME:          routing_weight_stage = 1 : i64, scale_mode = "rceil"
// ONE-NEXT:        [[OUT:%.*]] = "moe.combine"([[D]], %arg1, %arg9)
// ONE-NEXT:        return [[OUT]]
// The routing weight moves to the first product; the layout is unpadded.
// WEIGHT-LABEL:  func.func @gpt_oss
// WEIGHT-NEXT:     [[S:%.*]]:4 = "moe.sort_tokens"{{.*}}block = 64
// WEIGHT:          "moe.sort_scales"{{.*}}layout = "row_major"{{.*}} -> tensor<?x2xf8E8M0FNU>
// WEIGHT-NEXT:     "moe.gate_up"({{[^,]*}}, {{[^,]*}}, [[S]]#0, [[S]]#2, [[S]]#3, [[S]]#1, %arg3, %arg4, %arg5)
// WEIGHT:          "moe.down"({{[^,]*}}, {{[^,]*}}, [[S]]#0, [[S]]#2, [[S]]#3, %arg6, %arg7, %arg8)
// FUSED-LABEL:   func.func @gpt_oss
// FUSED-NEXT:      "moe.sort_tokens"
// FUSED-NEXT:      "moe.quant_sort"{{.*}}stage = 1
// FUSED-NEXT:      "moe.gate_up"
// FUSED-NEXT:      "moe.quant_sort"{{.*}}stage = 2
// FUSED-NEXT:      "moe.down"
// FUSED-NEXT:      "moe.combine"
// FUSED1-LABEL:  func.func @gpt_oss
// FUSED1-NEXT:     "moe.sort_tokens"
// FUSED1-NEXT:     "moe.quant_sort"{{.*}}stage = 1
// FUSED1-NEXT:     "moe.experts_one_stage"
// FUSED1-NEXT:     "moe.combine"
// Two plans of the same experts, one for up to 16 rows an expert (E = 4, k = 2: 32 tokens); the fusion fires in both.
// RANGES-LABEL:  func.func @gpt_oss
// RANGES:          [[M:%.*]] = tensor.dim %arg1
// RANGES-NEXT:     [[OUT:%.*]] = "kernel.alternatives"([[M]]) ({
// RANGES-NEXT:       "moe.sort_tokens"{{.*}}block = 8
// RANGES-NEXT:       "moe.quant_sort"{{.*}}stage = 1
// RANGES-NEXT:       "moe.gate_up"
// RANGES-NEXT:       "moe.quant_sort"{{.*}}stage = 2
// RANGES-NEXT:       "moe.down"
// RANGES-NEXT:       [[A:%.*]] = "moe.combine"
// RANGES-NEXT:       "kernel.yield"([[A]])
// RANGES-NEXT:     }, {
// RANGES:            [[N:%.*]] = tensor.dim %arg1
// RANGES-NEXT:       [[BEYOND:%.*]] = "kernel.alternatives"([[N]]) ({
// RANGES-NEXT:         "moe.sort_tokens"{{.*}}block = 32
// RANGES:              "moe.gate_up"
// RANGES:              "moe.down"
// RANGES:            }, {
// RANGES-NEXT:         "moe.sort_tokens"{{.*}}block = 128
// RANGES-NEXT:         "moe.quant_sort"{{.*}}stage = 1
// RANGES-NEXT:         "moe.experts_one_stage"
// RANGES-NEXT:         [[B:%.*]] = "moe.combine"
// RANGES-NEXT:         "kernel.yield"([[B]])
// RANGES-NEXT:       }) {choice = "tokens", max_m = 32 : i64, reason = "sort blocks of 32 rows up to 32 tokens, of 128 beyond"
// RANGES-NEXT:       "kernel.yield"([[BEYOND]])
// RANGES-NEXT:     }) {choice = "tokens", max_m = 8 : i64, reason = "sort blocks of 8 rows up to 8 tokens, of 32 beyond"
// RANGES:          return [[OUT]]
func.func @gpt_oss(%x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>, %w1: tensor<4x192x64xf4E2M1FN>,
    %s1: tensor<4x192x2xf8E8M0FNU>, %b1: tensor<4x192xbf16>, %w2: tensor<4x64x96xf4E2M1FN>, %s2: tensor<4x64x3xf8E8M0FNU>,
    %b2: tensor<4x64xbf16>, %live: tensor<1xi32>) -> tensor<?x64xbf16> {
  %0 = "moe.experts"(%x, %ids, %w, %w1, %s1, %b1, %w2, %s2, %b2, %live) {activation = "swiglu", alpha = 1.702 : f32,
      limit = 7.0 : f32, gate_up_order = "interleaved", weight_order = "nk",
      operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x192x64xf4E2M1FN>, tensor<4x192x2xf8E8M0FNU>,
         tensor<4x192xbf16>, tensor<4x64x96xf4E2M1FN>, tensor<4x64x3xf8E8M0FNU>, tensor<4x64xbf16>, tensor<1xi32>) -> tensor<?x64xbf16>
  return %0 : tensor<?x64xbf16>
}

// A static M gives static sizes: S = 3*2 + 8*32 - min(2, 8) = 260 rows, 9 blocks, 288 rows of scales; the mask of 8
// global experts decides, not the 4 local ones. h is bf16 whatever x is.
// TWO-LABEL:     func.func @static_with_a_mask
// TWO-NEXT:        "moe.sort_tokens"(%arg1, %arg2, %arg7) {block = 32 : i64, experts = 8 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 1>} : {{.*}} -> (tensor<260xi32>, tensor<260xf32>, tensor<9xi32>, tensor<2xi32>)
// TWO-NEXT:        "moe.quant"{{.*}} -> (tensor<3x64xf4E2M1FN>, tensor<3x2xf8E8M0FNU>)
// TWO-NEXT:        "moe.sort_scales"{{.*}} -> tensor<288x8xf8E8M0FNU>
// TWO-NEXT:        "moe.gate_up"{{.*}} -> tensor<6x64xbf16>
// TWO-NEXT:        "moe.quant"{{.*}} : (tensor<6x64xbf16>)
// TWO-NEXT:        "moe.sort_scales"{{.*}} -> tensor<288x8xf8E8M0FNU>
// TWO-NEXT:        "moe.down"{{.*}} -> tensor<6x64xf32>
// TWO-NEXT:        "moe.combine"({{.*}}, %arg1, %arg7) {operandSegmentSizes = array<i32: 1, 1, 0, 1>}{{.*}} -> tensor<3x64xf16>
func.func @static_with_a_mask(%x: tensor<3x64xf16>, %ids: tensor<3x2xi32>, %w: tensor<3x2xf32>, %w1: tensor<4x128x64xf4E2M1FN>,
    %s1: tensor<4x128x2xf8E8M0FNU>, %w2: tensor<4x64x64xf4E2M1FN>, %s2: tensor<4x64x2xf8E8M0FNU>, %mask: tensor<8xi1>) -> tensor<3x64xf16> {
  %0 = "moe.experts"(%x, %ids, %w, %w1, %s1, %w2, %s2, %mask) {activation = "silu", alpha = 0.0 : f32, limit = 0.0 : f32,
      gate_up_order = "concatenated", weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 1>}
      : (tensor<3x64xf16>, tensor<3x2xi32>, tensor<3x2xf32>, tensor<4x128x64xf4E2M1FN>, tensor<4x128x2xf8E8M0FNU>,
         tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>, tensor<8xi1>) -> tensor<3x64xf16>
  return %0 : tensor<3x64xf16>
}

// Pre-quantised input: its scales are only sorted; the second stage is quantised here, from bf16.
// TWO-LABEL:     func.func @prequantised
// TWO-NEXT:        [[S:%.*]]:4 = "moe.sort_tokens"
// TWO-NEXT:        [[QS:%.*]] = "moe.sort_scales"(%arg1, [[S]]#0, [[S]]#3) {{.*}}stage = 1
// TWO-NEXT:        [[H:%.*]] = "moe.gate_up"(%arg0, [[QS]]{{.*}} -> tensor<?x64xbf16>
// TWO-NEXT:        "moe.quant"([[H]])
// TWO-NEXT:        "moe.sort_scales"{{.*}}stage = 2
// TWO-NEXT:        "moe.down"
// ONE-LABEL:     func.func @prequantised
// ONE-NEXT:        "moe.sort_tokens"
// ONE-NEXT:        [[QS:%.*]] = "moe.sort_scales"(%arg1,
// ONE-NEXT:        "moe.experts_one_stage"(%arg0, [[QS]],
// FUSED-LABEL:   func.func @prequantised
// FUSED-NEXT:      "moe.sort_tokens"
// FUSED-NEXT:      "moe.sort_scales"(%arg1
// FUSED-NEXT:      "moe.gate_up"
// FUSED-NEXT:      "moe.quant_sort"{{.*}}stage = 2
// FUSED1-LABEL:  func.func @prequantised
// FUSED1-NEXT:     "moe.sort_tokens"
// FUSED1-NEXT:     "moe.sort_scales"(%arg1
// FUSED1-NEXT:     "moe.experts_one_stage"
func.func @prequantised(%x: tensor<?x64xf4E2M1FN>, %xs: tensor<?x2xf8E8M0FNU>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>,
    %w1: tensor<4x128x64xf4E2M1FN>, %s1: tensor<4x128x2xf8E8M0FNU>, %w2: tensor<4x64x64xf4E2M1FN>, %s2: tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16> {
  %0 = "moe.experts"(%x, %xs, %ids, %w, %w1, %s1, %w2, %s2) {activation = "silu", alpha = 0.0 : f32, limit = 0.0 : f32,
      gate_up_order = "concatenated", weight_order = "nk", operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return %0 : tensor<?x64xbf16>
}

// Weights that nobody quantised stay in their order; lowering refuses them.
// TWO-LABEL:     func.func @unquantised_weights
// TWO:             "moe.gate_up"({{.*}}, %arg3) {{.*}}weight_order = "kn"{{.*}} -> tensor<?x96xbf16>
// TWO:             "moe.down"({{.*}}, %arg4) {{.*}}weight_order = "kn"
// ONE-LABEL:     func.func @unquantised_weights
// ONE:             "moe.experts_one_stage"({{.*}}, %arg3, %arg4) {{.*}}weight_order = "kn"
func.func @unquantised_weights(%x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>, %w1: tensor<4x64x192xbf16>,
    %w2: tensor<4x96x64xbf16>) -> tensor<?x64xbf16> {
  %0 = "moe.experts"(%x, %ids, %w, %w1, %w2) {activation = "silu", alpha = 0.0 : f32, limit = 0.0 : f32,
      gate_up_order = "concatenated", weight_order = "kn", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x64x192xbf16>, tensor<4x96x64xbf16>) -> tensor<?x64xbf16>
  return %0 : tensor<?x64xbf16>
}

// TWO-LABEL:     func.func @inside_a_region
// TWO:             scf.if
// TWO-NEXT:          "moe.sort_tokens"
// TWO:               "moe.combine"
// TWO-NEXT:          scf.yield
func.func @inside_a_region(%c: i1, %x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>, %w1: tensor<4x128x64xbf16>,
    %w2: tensor<4x64x64xbf16>) -> tensor<?x64xbf16> {
  %r = scf.if %c -> tensor<?x64xbf16> {
    %0 = "moe.experts"(%x, %ids, %w, %w1, %w2) {activation = "silu", alpha = 0.0 : f32, limit = 0.0 : f32,
        gate_up_order = "concatenated", weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0>}
        : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xbf16>, tensor<4x64x64xbf16>) -> tensor<?x64xbf16>
    scf.yield %0 : tensor<?x64xbf16>
  } else {
    scf.yield %x : tensor<?x64xbf16>
  }
  return %r : tensor<?x64xbf16>
}

// Without moe.experts nothing changes.
// TWO-LABEL:     func.func @other_kinds_survive
// TWO-NEXT:        "moe.quant"(%arg0) {kind = "per_token", scale_mode = "none"}
// TWO-NEXT:        return
// FUSED-LABEL:   func.func @other_kinds_survive
// FUSED-NEXT:      "moe.quant"(%arg0) {kind = "per_token", scale_mode = "none"}
// FUSED-NEXT:      return
func.func @other_kinds_survive(%x: tensor<?x64xbf16>) -> tensor<?x64xf8E4M3FN> {
  %q:2 = "moe.quant"(%x) {kind = "per_token", scale_mode = "none"} : (tensor<?x64xbf16>) -> (tensor<?x64xf8E4M3FN>, tensor<?x1xf32>)
  return %q#0 : tensor<?x64xf8E4M3FN>
}
