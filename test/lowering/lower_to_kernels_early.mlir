// RUN: moeloom-opt -p "moe-lower-to-kernels{target=sm_90 fusion=fused}" --split-input-file %s | filecheck %s
// RUN: moeloom-opt -p "moe-lower-to-kernels{target=sm_90 fusion=split}" --split-input-file %s | filecheck --check-prefix=SPLIT %s
// RUN: moeloom-opt -p "moe-lower-to-kernels{target=sm_80 fusion=fused}" --split-input-file %s | filecheck --check-prefix=ALONE %s

// Behind the token sort a quantiser reads what the caller gives before it waits for the sort; launches must overlap for that.
// CHECK: early = true, {{.*}}sym_name = "quant_sort_0"
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

// What ATen has just computed is not there before the wait.
// CHECK: early = false, {{.*}}sym_name = "quant_sort_0"
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
