/** What must hold of payments: with their orders, with the money of wallets, and with their own history. */

/** By what they say; see invariants.ts. */
export const paymentInvariants: Readonly<Record<string, string>> = {
  "a paid order has exactly one completed payment, no other order has one": `
    select o.id::text from shop_order o
      left join payment p on p.order_id = o.id and p.state = 'COMPLETED' and p.amount = o.total and p.user_id = o.user_id
     group by o.id
    having count(p.id) <> case o.state when 'PAID' then 1 else 0 end`,

  "each payment belongs to an order, and holds its money as long as that is paid": `
    select p.id::text from payment p left join shop_order o on o.id = p.order_id
     where o.id is null or (p.state = 'COMPLETED' and o.state <> 'PAID')
        or (p.state in ('REFUNDING', 'REFUNDED') and p.method = 'BALANCE' and o.state <> 'CANCELLED')`,

  "of a payment as much goes back as its state says": `
    select p.id::text from payment p
     where case p.state when 'COMPLETED' then p.refunded_amount + p.refunding_amount > p.amount
                        when 'REFUNDED' then p.refunded_amount <> p.amount or p.refunding_amount <> 0
                        when 'REFUNDING' then p.refunded_amount + p.refunding_amount <> p.amount or p.refunding_amount = 0
                        else p.refunded_amount <> 0 or p.refunding_amount <> 0 end`,

  "the gateway is asked about what it has to settle, and about nothing else": `
    select p.id::text from payment p
     where (p.state = 'PENDING') <> (p.next_try_time is not null)
        or (p.method = 'BALANCE' and (p.state in ('PENDING', 'FAILED', 'REFUNDING') or p.refunding_amount <> 0))`,

  "the refunds that the gateway is asked for are those of its payments": `
    select coalesce(p.id, r.payment_id)::text as id
      from (select * from payment where method = 'EXTERNAL') p
      full join (select order_id, payment_id, coalesce(sum(amount) filter (where state = 'PENDING'), 0) as pending,
                        coalesce(sum(amount) filter (where state = 'COMPLETED'), 0) as completed
                   from gateway_refund group by order_id, payment_id) r on r.order_id = p.order_id and r.payment_id = p.id
     where p.id is null or p.refunding_amount <> coalesce(r.pending, 0) or p.refunded_amount <> coalesce(r.completed, 0)`,

  "a payment from the wallet has one debit, and credits of what was refunded": `
    select p.id::text from payment p left join ledger_entry l on l.user_id = p.user_id and l.reference = p.id::text
     where p.method = 'BALANCE' and p.amount > 0
     group by p.order_id, p.id
    having count(*) filter (where l.kind = 'PAYMENT' and l.amount = -p.amount) <> 1
        or coalesce(sum(l.amount) filter (where l.kind = 'REFUND'), 0) <> p.refunded_amount
        or count(*) filter (where l.kind = 'REFUND') + 1 <> count(*)`,

  "money leaves and returns for payments only": `
    select l.user_id || '/' || l.seq as id from ledger_entry l
     where l.kind <> 'CHARGE'
       and not exists (select 1 from payment p
                        where p.id::text = l.reference and p.user_id = l.user_id and p.method = 'BALANCE')`,

  "the history of a payment is numbered without a gap and ends in its state": `
    select p.id::text from payment p left join payment_event e on e.order_id = p.order_id and e.payment_id = p.id
     group by p.order_id, p.id
    having count(e.seq) <> p.events or max(e.seq) <> p.events or min(e.seq) <> 1
        or (array_agg(e.state order by e.seq desc))[1] <> p.state
        or sum(e.amount)
           <> case when p.state in ('COMPLETED', 'REFUNDING', 'REFUNDED') then p.amount - p.refunded_amount else 0 end`,
};
