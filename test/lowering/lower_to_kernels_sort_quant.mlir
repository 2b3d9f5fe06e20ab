// RUN: moeloom-opt -p moe-lower-to-kernels{target=sm_90} --split-input-file %s | filecheck %s
// RUN: moeloom-opt -p "moe-lower-to-kernels{target=sm_90 fusion=split}" --split-input-file %s | filecheck --check-prefix=SPLIT %s

// The fused quantiser of stage 1 is in the token sort's launch up to where it is overtaken: then nobody asks for the row of each slot.
// CHECK-LABEL: func.func @joins
// CHECK:         [[BOTH:%.*]]:6 = "kernel.alternatives"
// CHECK-NEXT:      {{%.*}}:6 = "kernel.launch"({{%[^,]*}}, %arg1, %arg2, %arg3, %arg0) {{.*}}kernel = @sort_quant_0, moe.layout = "row_major", moe.op = "moe.quant_sort", moe.sort = array<i64: 8, 12, 8>
// CHECK-NOT:     @quant_sort
// CHECK:         kernel = @sort_tokens_0, moe.op = "moe.sort_tokens"
// CHECK-NOT:     @quant_sort
// CHECK:         kernel = @quant_0, moe.op = "moe.quant_sort"
// CHECK:         kernel = @sort_scales_0
// CHECK:         choice = "fusion", max_m = 64 {{.*}}reason = "stage 1: fused quant + scale sort in the token sort's launch up to 64 tokens on sm_90"
// CHECK:         return [[BOTH]]#4, [[BOTH]]#5
// SPLIT-NOT:   sort_quant
func.func @joins(%x: tensor<?x96xbf16>, %ids: tensor<?x8xi32>, %w: tensor<?x8xf32>, %m: tensor<12xi32>) -> (tensor<?x96xf4E2M1FN>, tensor<?x3xf8E8M0FNU>) {
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w, %m) {experts = 12 : i64, block = 8 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 1>}
    : (tensor<?x8xi32>, tensor<?x8xf32>, tensor<12xi32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %q, %ss = "moe.quant_sort"(%x, %s, %n) {kind = "per_1x32", scale_mode = "even", stage = 1 : i64, topk = 8 : i64, layout = "row_major"}
    : (tensor<?x96xbf16>, tensor<?xi32>, tensor<2xi32>) -> (tensor<?x96xf4E2M1FN>, tensor<?x3xf8E8M0FNU>)
  return %q, %ss : tensor<?x96xf4E2M1FN>, tensor<?x3xf8E8M0FNU>
}

// -----

// Stage 2 quantises rows of their own; its kernel asks for the row of each slot, and gets it from either launch.
// CHECK-LABEL: func.func @stage_2_does_not
// CHECK:         [[BOTH:%.*]]:7 = "kernel.alternatives"
// CHECK-NEXT:      kernel = @sort_quant_0
// CHECK:           kernel = @sort_scatter_0
// CHECK:         choice = "fusion", max_m = 256
// CHECK:         "kernel.launch"({{%[^,]*}}, %arg3, [[BOTH]]#4, [[BOTH]]#3) {{.*}}kernel = @quant_sort_sm_90_0
func.func @stage_2_does_not(%x: tensor<?x96xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>, %h: tensor<?x64xbf16>)
    -> (tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>, tensor<?x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>) {
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {experts = 8 : i64, block = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %q, %ss = "moe.quant_sort"(%x, %s, %n) {kind = "per_1x32", scale_mode = "even", stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"}
    : (tensor<?x96xbf16>, tensor<?xi32>, tensor<2xi32>) -> (tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>)
  %p, %ps = "moe.quant_sort"(%h, %s, %n) {kind = "per_1x32", scale_mode = "even", stage = 2 : i64, topk = 2 : i64, layout = "tiled_32x8"}
    : (tensor<?x64xbf16>, tensor<?xi32>, tensor<2xi32>) -> (tensor<?x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>)
  return %q, %ss, %p, %ps : tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>, tensor<?x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>
}

// -----

// Nor is what is computed behind the sort there for its launch.
// CHECK-LABEL: func.func @computed_behind
// CHECK-NOT:     sort_quant
// CHECK:         kernel = @sort_tokens_0
// CHECK:         kernel = @quant_sort_sm_90_0
func.func @computed_behind(%h: tensor<?x96xbf16>, %ids: tensor<?x4xi32>, %w: tensor<?x4xf32>) -> (tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>) {
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {experts = 8 : i64, block = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x4xi32>, tensor<?x4xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %t = torch_c.from_builtin_tensor %h : tensor<?x96xbf16> -> !torch.vtensor<[?,96],bf16>
  %r = torch.aten.relu %t : !torch.vtensor<[?,96],bf16> -> !torch.vtensor<[?,96],bf16>
  %x = torch_c.to_builtin_tensor %r : !torch.vtensor<[?,96],bf16> -> tensor<?x96xbf16>
  %q, %ss = "moe.quant_sort"(%x, %s, %n) {kind = "per_1x32", scale_mode = "even", stage = 1 : i64, topk = 4 : i64, layout = "tiled_32x8"}
    : (tensor<?x96xbf16>, tensor<?xi32>, tensor<2xi32>) -> (tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>)
  return %q, %ss : tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>
}

// -----

// What is computed before it is.
// CHECK-LABEL: func.func @computed_before
// CHECK:         kernel = @sort_quant_0
// CHECK-NOT:     @quant_sort
// CHECK:         return
func.func @computed_before(%h: tensor<?x96xbf16>, %ids: tensor<?x4xi32>, %w: tensor<?x4xf32>) -> (tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>) {
  %t = torch_c.from_builtin_tensor %h : tensor<?x96xbf16> -> !torch.vtensor<[?,96],bf16>
  %r = torch.aten.relu %t : !torch.vtensor<[?,96],bf16> -> !torch.vtensor<[?,96],bf16>
  %x = torch_c.to_builtin_tensor %r : !torch.vtensor<[?,96],bf16> -> tensor<?x96xbf16>
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {experts = 8 : i64, block = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x4xi32>, tensor<?x4xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %q, %ss = "moe.quant_sort"(%x, %s, %n) {kind = "per_1x32", scale_mode = "even", stage = 1 : i64, topk = 4 : i64, layout = "tiled_32x8"}
    : (tensor<?x96xbf16>, tensor<?xi32>, tensor<2xi32>) -> (tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>)
  return %q, %ss : tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>
}

// -----

// Nor what is computed between routing and sort, which are one launch for few tokens, at the place of the routing.
// CHECK-LABEL: func.func @computed_between
// CHECK-NOT:     sort_quant
// CHECK:         kernel = @route_sort_0
// CHECK:         torch.aten.relu
// CHECK:         kernel = @quant_sort_sm_90_0
func.func @computed_between(%h: tensor<?x96xbf16>, %l: tensor<?x8xbf16>) -> (tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>) {
  %w, %ids = "moe.route"(%l) {topk = 4 : i64, score = "softmax_after_topk", renormalise = false, scale = 1.0 : f32, groups = 1 : i64,
      top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 0, 0>} : (tensor<?x8xbf16>) -> (tensor<?x4xf32>, tensor<?x4xi32>)
  %t = torch_c.from_builtin_tensor %h : tensor<?x96xbf16> -> !torch.vtensor<[?,96],bf16>
  %r = torch.aten.relu %t : !torch.vtensor<[?,96],bf16> -> !torch.vtensor<[?,96],bf16>
  %x = torch_c.to_builtin_tensor %r : !torch.vtensor<[?,96],bf16> -> tensor<?x96xbf16>
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {experts = 8 : i64, block = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x4xi32>, tensor<?x4xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %q, %ss = "moe.quant_sort"(%x, %s, %n) {kind = "per_1x32", scale_mode = "even", stage = 1 : i64, topk = 4 : i64, layout = "tiled_32x8"}
    : (tensor<?x96xbf16>, tensor<?xi32>, tensor<2xi32>) -> (tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>)
  return %q, %ss : tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>
}

// -----

// The routing of more tokens is a launch of its own, behind which sort and quantiser are one.
// CHECK-LABEL: func.func @behind_the_routing
// CHECK:         [[ALL:%.*]]:9 = "kernel.alternatives"
// CHECK-NEXT:      kernel = @route_sort_0
// CHECK-NEXT:      kernel = @quant_sort_sm_90_0
// CHECK:         }, {
// CHECK-NEXT:      [[ROUTE:%.*]]:2 = {{.*}}kernel = @route_0
// CHECK-NEXT:      "kernel.alternatives"
// CHECK-NEXT:        "kernel.launch"({{%[^,]*}}, [[ROUTE]]#1, [[ROUTE]]#0, %arg0) {{.*}}kernel = @sort_quant_0
// CHECK:           choice = "fusion", max_m = 128
// CHECK:         choice = "prologue", max_m = 8
// CHECK:         return [[ALL]]#7, [[ALL]]#8
func.func @behind_the_routing(%x: tensor<?x96xbf16>, %l: tensor<?x8xbf16>) -> (tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>) {
  %w, %ids = "moe.route"(%l) {topk = 4 : i64, score = "softmax_after_topk", renormalise = false, scale = 1.0 : f32, groups = 1 : i64,
      top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 0, 0>} : (tensor<?x8xbf16>) -> (tensor<?x4xf32>, tensor<?x4xi32>)
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {experts = 8 : i64, block = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x4xi32>, tensor<?x4xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %q, %ss = "moe.quant_sort"(%x, %s, %n) {kind = "per_1x32", scale_mode = "even", stage = 1 : i64, topk = 4 : i64, layout = "tiled_32x8"}
    : (tensor<?x96xbf16>, tensor<?xi32>, tensor<2xi32>) -> (tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>)
  return %q, %ss : tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>
}
