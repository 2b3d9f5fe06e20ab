// RUN: moeloom-opt -p "moe-lower-to-kernels{target=sm_90 fusion=fused}" --split-input-file %s | filecheck %s
// RUN: moeloom-opt -p "moe-lower-to-kernels{target=sm_90 fusion=split}" --split-input-file %s | filecheck --check-prefix=SPLIT %s
// RUN: moeloom-opt -p "moe-lower-to-kernels{target=sm_80 fusion=fused}" --split-input-file %s | filecheck --check-prefix=ALONE %s

// Behind the token sort a quantiser reads what the caller gives before it waits for the sort; launches must overlap for that.
// CHECK: affine_map<(d0) -> ((d0 * 8) ceildiv 32)>
// CHECK: early = true, {{.*}}sym_name = "quant_sort_sm_90_0"
// SPLIT: early = true, {{.*}}sym_name = "quant_0"
// ALONE: early = false, {{.*}}sym_name = "quant_sort_0"
func.func @caller(%x: tensor<?x96xbf16>, %ids: tensor<?x4xi32>, %w: tensor<?x4xf32>) -> (tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>) {
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {experts = 8 : i64, block = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x4xi32>, tensor<?x4xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %q, %ss = "moe.quant_sort"(%x, %s, %n) {kind = "per_1x32", scale_mode = "even", stage = 1 : i64, topk = 4 : i64, layout = "tiled_32x8"}
    : (tensor<?x96xbf16>, tensor<?xi32>, tensor<2xi32>) -> (tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>)
  return %q, %ss : tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>
}

// -----

// Of f16 it is the kernel of every target.
// CHECK: early = true, {{.*}}sym_name = "quant_sort_0", template = "quant_sort"
func.func @half(%x: tensor<?x96xf16>, %ids: tensor<?x4xi32>, %w: tensor<?x4xf32>) -> (tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>) {
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {experts = 8 : i64, block = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x4xi32>, tensor<?x4xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %q, %ss = "moe.quant_sort"(%x, %s, %n) {kind = "per_1x32", scale_mode = "even", stage = 1 : i64, topk = 4 : i64, layout = "tiled_32x8"}
    : (tensor<?x96xf16>, tensor<?xi32>, tensor<2xi32>) -> (tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>)
  return %q, %ss : tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>
}

// -----

// What ATen has just computed is not there before the wait.
// CHECK: early = false, {{.*}}sym_name = "quant_sort_sm_90_0"
// SPLIT: early = false, {{.*}}sym_name = "quant_0"
func.func @computed(%h: tensor<?x96xbf16>, %ids: tensor<?x4xi32>, %w: tensor<?x4xf32>) -> (tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>) {
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

// Nor is what the caller gives behind no launch at all.
// CHECK: early = false, {{.*}}sym_name = "quant_0"
func.func @first(%x: tensor<?x96xbf16>) -> (tensor<?x96xf4E2M1FN>, tensor<?x3xf8E8M0FNU>) {
  %q, %s = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "even"} : (tensor<?x96xbf16>) -> (tensor<?x96xf4E2M1FN>, tensor<?x3xf8E8M0FNU>)
  return %q, %s : tensor<?x96xf4E2M1FN>, tensor<?x3xf8E8M0FNU>
}

// -----

// Behind the products, which experts a token has is read early, whoever chose them.
// CHECK: early = true, {{.*}}sym_name = "combine_0"
func.func @whose_experts(%x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>,
    %w2: tensor<8x96x64xf4E2M1FN> {moe.weight = "v"}, %s2: tensor<8x96x2xf8E8M0FNU> {moe.weight = "t"}) -> tensor<?x96xbf16> {
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {experts = 8 : i64, block = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %r = "moe.down"(%x, %s, %e, %n, %sw, %w2, %s2) {topk = 2 : i64, block = 16 : i64, weight_order = "nk",
      operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 1, 1, 0>}
    : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<?xf32>, tensor<8x96x64xf4E2M1FN>, tensor<8x96x2xf8E8M0FNU>) -> tensor<?x96xf32>
  %y = "moe.combine"(%r, %ids) {operandSegmentSizes = array<i32: 1, 1, 0, 0>} : (tensor<?x96xf32>, tensor<?x2xi32>) -> tensor<?x96xbf16>
  return %y : tensor<?x96xbf16>
}

// -----

// Not where no launch made the rows.
// CHECK: early = false, {{.*}}sym_name = "combine_0"
func.func @rows_of_the_caller(%r: tensor<?x96xf32>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>) -> (tensor<?x96xbf16>, tensor<?xi32>) {
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {experts = 8 : i64, block = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %y = "moe.combine"(%r, %ids) {operandSegmentSizes = array<i32: 1, 1, 0, 0>} : (tensor<?x96xf32>, tensor<?x2xi32>) -> tensor<?x96xbf16>
  return %y, %s : tensor<?x96xbf16>, tensor<?xi32>
}
